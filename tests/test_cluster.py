"""Clusters as TF_CONFIG and Slurm describe them."""

import json

import pytest

from trainer import cluster, errors
from trainer.cluster import Cluster

_SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "b[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}


def _tf_config(jobs, task_type, index, **more):
    task = {"type": task_type, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": task, **more})}


def _error(environ):
    with pytest.raises(errors.UsageError) as raised:
        cluster.from_environment(environ)
    return str(raised.value)


def _hosts_and_ports(environ):
    addresses = cluster.from_environment(environ).addresses
    hosts, ports = zip(*map(cluster.host_and_port, addresses), strict=True)
    return list(hosts), [int(port) for port in ports]


def test_a_cluster_knows_its_own_place():
    addresses = ("a:1", "b:2", "c:3")
    chief, last = Cluster(addresses, 0), Cluster(addresses, 2)
    assert (chief.num_workers, chief.is_chief, chief.address) == (
        3,
        True,
        "a:1",
    )
    assert (last.num_workers, last.is_chief, last.address) == (3, False, "c:3")


@pytest.mark.parametrize("index", [1, "1"])
def test_tf_config_of_workers_only(index):
    environ = _tf_config({"worker": ["a:1", "b:2"]}, "worker", index)
    expected = Cluster(("a:1", "b:2"), 1)
    assert cluster.from_environment(environ) == expected


@pytest.mark.parametrize(
    ("task_type", "index", "own"),
    [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)],
)
def test_the_chief_of_tf_config_comes_first(task_type, index, own):
    jobs = {"worker": ["a:1", "b:2"], "chief": ["z:3"]}
    found = cluster.from_environment(_tf_config(jobs, task_type, index))
    assert found == Cluster(("z:3", "a:1", "b:2"), own)


def test_what_vertex_ai_adds_to_tf_config_is_ignored():
    # Its first worker pool is the chief, and every task has an id of its own.
    environ = json.dumps(
        {
            "cluster": {
                "chief": ["cmle-training-workerpool0-1a2b-0:2222"],
                "worker": ["cmle-training-workerpool1-1a2b-0:2222"],
            },
            "environment": "cloud",
            "task": {"type": "worker", "index": 0, "trial": "", "cloud": "x"},
            "job": "{}",
        }
    )
    assert cluster.from_environment({"TF_CONFIG": environ}) == Cluster(
        (
            "cmle-training-workerpool0-1a2b-0:2222",
            "cmle-training-workerpool1-1a2b-0:2222",
        ),
        1,
    )


def test_tf_config_wins_over_slurm():
    environ = _SLURM | _tf_config({"worker": ["a:1"]}, "worker", 0)
    assert cluster.from_environment(environ) == Cluster(("a:1",), 0)


def test_ipv6_hosts_stand_in_brackets():
    environ = _tf_config({"worker": ["[::1]:1", "[fe80::1]:2"]}, "worker", 0)
    assert _hosts_and_ports(environ) == (["::1", "fe80::1"], [1, 2])


@pytest.mark.parametrize("job", ["ps", "evaluator", "master", "Worker"])
def test_other_jobs_are_refused(job):
    jobs = {"worker": ["a:1"], job: ["b:2"]}
    for message in (
        _error(_tf_config(jobs, "worker", 0)),
        _error(_tf_config({"worker": ["a:1"]}, job, 0)),
    ):
        assert f"{job!r} is not a supported job" in message
        assert "supported are chief and worker" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", 'not an object with "cluster"'),
        ("{}", 'not an object with "cluster"'),
        ('{"cluster": {}}', 'not an object with "task"'),
        ('{"cluster": [], "task": {}}', '"cluster" is [], not of type object'),
        ('{"cluster": {}, "task": {}}', 'not an object with "type"'),
        ('{"cluster": {}, "task": {"type": 1}}', '"type" is 1, not of'),
        (
            '{"cluster": {}, "task": {"type": "chief"}}',
            'not an object with "index"',
        ),
    ],
)
def test_a_malformed_tf_config_is_refused_with_an_example(text, problem):
    message = _error({"TF_CONFIG": text})
    assert problem in message
    assert """TF_CONFIG='{"cluster": {"worker": ["host0:2222",""" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "index", [2, -1, "2", "-1", "", "one", True, None, 1.0, "1" * 5000]
)
def test_an_index_that_no_worker_has_is_refused(index):
    environ = _tf_config({"worker": ["a:1", "b:2"]}, "worker", index)
    assert "TF_CONFIG cannot be used" in _error(environ)


def test_a_task_of_a_job_without_addresses_is_refused():
    message = _error(_tf_config({"worker": ["a:1"]}, "chief", 0))
    assert """"cluster" has 0 addresses of "chief\"""" in message


@pytest.mark.parametrize(
    "address",
    [
        *("a", "a:", ":1", "a:b", "a:0", "a:65536", "a:-1", "a b:1", "::1:1"),
        *("[::1]", "grpc://a:1", "a:1\n", "a:1:2", "", 1, None, ["a:1"]),
    ],
)
def test_what_is_not_an_address_is_refused(address):
    message = _error(_tf_config({"worker": [address, "b:2"]}, "worker", 1))
    assert repr(address) in message


def test_two_chiefs_are_refused():
    message = _error(_tf_config({"chief": ["a:1", "b:2"]}, "chief", 0))
    assert '"chief" has 2 addresses' in message


@pytest.mark.parametrize(
    "jobs",
    [
        {"worker": ["a:1", "A:1"]},
        {"chief": ["a:1"], "worker": ["b:1", "a:01"]},
    ],
)
def test_an_address_that_appears_twice_is_refused(jobs):
    assert "appears twice" in _error(_tf_config(jobs, "worker", 0))


def test_slurm_ranks_fill_one_node_after_the_other():
    found = cluster.from_environment(_SLURM)
    assert (found.index, found.num_workers) == (2, 3)
    hosts, ports = _hosts_and_ports(_SLURM)
    assert hosts == ["b1", "b1", "b2"]
    assert [port - ports[0] for port in ports] == [0, 1, 0]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("a", ["a"]),
        ("b,a", ["b", "a"]),
        (
            "gpu[01-03,07],login5",
            ["gpu01", "gpu02", "gpu03", "gpu07", "login5"],
        ),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]-ib", ["n098-ib", "n099-ib", "n100-ib", "n101-ib"]),
        (
            "rack[1-2]node[01-02]",
            ["rack1node01", "rack1node02", "rack2node01", "rack2node02"],
        ),
        ("b[2,1],a.example.com", ["b2", "b1", "a.example.com"]),
    ],
)
def test_slurm_lists_of_nodes_are_expanded_in_order(nodes, expected):
    environ = _SLURM | {
        "SLURM_PROCID": "0",
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": str(len(expected)),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{len(expected)})",
    }
    assert _hosts_and_ports(environ)[0] == expected


def test_slurm_numbers_of_tasks_may_be_repeated():
    environ = _SLURM | {
        "SLURM_PROCID": "6",
        "SLURM_NODEID": "3",
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_STEP_NODELIST": "n[1-4]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    }
    expected = ["n1", "n1", "n2", "n2", "n3", "n3", "n4"]
    assert _hosts_and_ports(environ)[0] == expected


@pytest.mark.parametrize("nodes", ["SLURM_JOB_NODELIST", "SLURM_NODELIST"])
def test_slurm_variables_of_the_job_stand_in_for_the_steps(nodes):
    environ = {k: v for k, v in _SLURM.items() if "STEP" not in k}
    environ |= {
        "SLURM_NTASKS": "3",
        nodes: "b[1-2]",
        "SLURM_TASKS_PER_NODE": "2,1",
    }
    assert cluster.from_environment(environ) == cluster.from_environment(_SLURM)


def test_the_slurm_step_comes_before_the_job():
    environ = _SLURM | {
        "SLURM_NTASKS": "9",
        "SLURM_JOB_NODELIST": "z[1-9]",
        "SLURM_NODELIST": "z[1-9]",
        "SLURM_TASKS_PER_NODE": "1(x9)",
    }
    assert cluster.from_environment(environ) == cluster.from_environment(_SLURM)


def test_slurm_jobs_on_one_node_have_ports_of_their_own():
    def ports(job, step=""):
        environ = _SLURM | {
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_ID": str(step),
            "SLURM_PROCID": "0",
            "SLURM_NODEID": "0",
            "SLURM_STEP_NUM_TASKS": "16",
            "SLURM_STEP_NODELIST": "a",
            "SLURM_STEP_TASKS_PER_NODE": "16",
        }
        return _hosts_and_ports(environ)[1]

    used = [port for job in range(4000, 4700) for port in ports(job)]
    assert len(set(used)) == len(used)
    # And so have the steps of a job.
    used = [port for step in range(5) for port in ports(4000, step)]
    assert len(set(used)) == len(used)
    assert min(used) >= 1024
    # Where Linux begins to choose ports for outgoing connections.
    assert max(used) < 32768


@pytest.mark.parametrize(
    "place",
    [
        {"SLURM_PROCID": "1"},
        {"SLURM_PROCID": "3"},
        {"SLURM_NODEID": "0"},
        {"SLURM_LOCALID": "1"},
    ],
)
def test_other_slurm_distributions_are_refused_with_the_remedy(place):
    message = _error(_SLURM | place)
    assert "do not fill one node after the other" in message
    assert "srun --distribution=block" in message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "contradict"),
        ({"SLURM_STEP_NODELIST": "b[1-3]"}, "contradict"),
        ({"SLURM_STEP_NODELIST": "b[2-1]"}, "contradict"),
        ({"SLURM_STEP_NODELIST": "b[1-"}, "not a list of nodes"),
        ({"SLURM_STEP_NODELIST": "b[1-x]"}, "not a list of nodes"),
        ({"SLURM_STEP_NODELIST": "b[1,]"}, "not a list of node numbers"),
        ({"SLURM_STEP_NODELIST": "b1,,b2"}, "not a list of nodes"),
        ({"SLURM_STEP_NODELIST": "b1,b1"}, "appears twice"),
        ({"SLURM_STEP_NODELIST": ""}, "SLURM_NODELIST is not set"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(1)"}, "numbers of tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": ""}, "SLURM_TASKS_PER_NODE is not set"),
        ({"SLURM_LOCALID": "x"}, "SLURM_LOCALID='x' is not a number"),
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set"),
    ],
)
def test_slurm_variables_that_make_no_sense_are_refused(change, problem):
    message = _error(_SLURM | change)
    assert problem in message
    assert "srun" in message


def test_more_slurm_tasks_than_ports_are_refused():
    message = _error(
        _SLURM
        | {
            "SLURM_STEP_NUM_TASKS": "17",
            "SLURM_STEP_NODELIST": "a",
            "SLURM_STEP_TASKS_PER_NODE": "17",
        }
    )
    assert "not for 17" in message
    assert "--ntasks-per-node" in message


@pytest.mark.parametrize(
    "environ", [{}, {"TF_CONFIG": "", "SLURM_JOB_ID": "1"}]
)
def test_without_a_cluster_the_message_tells_how_to_get_one(environ):
    message = _error(environ)
    example = message.split("TF_CONFIG='")[1].split("'\n")[0]
    found = cluster.from_environment({"TF_CONFIG": example})
    assert found == Cluster(("host0:2222", "host1:2222"), 0)
    assert "`srun`" in message
    assert (
        "`python -m launch.main submit --platform=local --num_workers=2`"
        in message
    )
