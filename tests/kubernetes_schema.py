"""Whether an object is one that Kubernetes knows, to the last field.

The models are those of Kubernetes' OpenAPI, strict: an unknown field is wrong.
"""

import kubernetes_validate

# Of clusters that one meets: podReplacementPolicy is younger than the oldest.
VERSIONS = ("1.31", "1.37")


def problem(manifest):
    """Returns what is wrong with a Job, or "" """
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return f"{version}: {error.message}"
    return ""
