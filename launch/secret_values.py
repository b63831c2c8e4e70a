"""Finds what looks like a secret, which has no place in a job's description.

Whoever may look at a job sees its environment and arguments, and logs keep
them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from trainer import errors

_NAMES = re.compile(
    # Anywhere, as in DBPASSWORD,
    "passphrase|passwd|password|connection_?string"
    # as a word of the name, or as its end, as in MY_SECRETS.
    "|(?:^|_)(?:api_?key|access_?key|auth|credentials?|private_?key|pwd"
    "|secrets?|tokens?)(?:$|_)"
    "|(?:^|_)(?:keys?|pass|pat)$",
    re.IGNORECASE,
)
# Of it, a path is no secret, where one sees the machine's own files.
_PATH_NAME = "GOOGLE_APPLICATION_CREDENTIALS"
_VALUES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\bA(?:KIA|SIA)[0-9A-Z]{16}\b"  # Amazon's access keys.
    r"|\bAIza[\w-]{35}"  # Google's API keys,
    r"|\bya29\.[\w-]+"  # access tokens
    r"|\"private_key\""  # and key files.
    r"|\b(?:gh[oprsu]|github_pat|glpat|hf|npm)[-_][A-Za-z0-9_]{16,}"
    r"|\bsk-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\."  # JSON Web Tokens.
    r"|\b(?:Account|SharedAccess)Key=[^;\s]+"  # Azure's connection strings.
    r"|://[^/\s:@]*:[^/\s@]+@"  # A password in an address.
)


def refuse(
    environment: Mapping[str, str],
    fields: Mapping[str, Any],
    *,
    sees_files: bool = False,
) -> None:
    """Raises UsageError if a variable, or any text of a job, looks secret.

    The message does not show the value.

    Args:
        environment: Variables by name.
        fields: Strings, or tuples of them, by name of the flag; what is neither
            is passed over.
        sees_files: Whether the job sees the same files as who submits it, so
            that a variable may name one with credentials.
    """
    for name, value in environment.items():
        if sees_files and name == _PATH_NAME and value.startswith("/"):
            continue
        if _NAMES.search(name) or _VALUES.search(value):
            raise errors.UsageError(
                f"--env={name}=... looks like a secret, and whoever may see the"
                " job could read it. On Google Cloud, the job's service account"
                " needs no key; keep other secrets in Secret Manager and let"
                " the program fetch them."
            )
    for name, value in fields.items():
        texts: Iterable[Any] = value if isinstance(value, tuple) else (value,)
        for text in texts:
            if isinstance(text, str) and _VALUES.search(text):
                where = text.partition("=")[0] if "=" in text else ""
                raise errors.UsageError(
                    f"--{name}: {where or 'its value'} looks like a secret, and"
                    " whoever may see the job could read it. Leave it out."
                )


def redact(text: str) -> str:
    """Returns a text, say of a log, without what looks like a secret."""
    return _VALUES.sub("[redacted]", text)
