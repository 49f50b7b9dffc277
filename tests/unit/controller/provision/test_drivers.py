"""What the drivers ask their client programs, and how they read the answers."""

import json
import subprocess
import sys

import pytest

from controller.provision import driver, slurm
from controller.provision.command import CommandDriver
from controller.provision.driver import Completed, ProvisionError, Request, run_program
from controller.provision.kubernetes import KubernetesDriver, pod_state, statefulset_name
from controller.provision.lifecycle import Observed
from controller.provision.slurm import SlurmDriver, batch_script, parse_queue, sbatch_argv
from curtail.config import KubernetesSection, SlurmSection

SECRET = "ct1.abc.it's a secret"
REQUEST = Request("run-1a2b3c", "one", "North", 1, 2, "k3y", "https://c:8765", SECRET, 3601.0, 120.0)


class Program:
    """Answers calls in order, and keeps them."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def __call__(self, argv, text=""):
        self.calls.append((list(argv), text))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, Completed) else Completed(0, answer, "")


# -- Slurm -----------------------------------------------------------------------


def test_a_submission_names_the_machine_limits_its_life_and_keeps_the_token_to_standard_input():
    settings = SlurmSection(prefix=("ssh", "login1"), partition="gpu", gres="gpu:1", extra=("--mem=4G",))
    argv = sbatch_argv(settings, REQUEST)
    assert argv[:4] == ["ssh", "login1", "sbatch", "--parsable"]
    assert {
        "--job-name=curtail:run-1a2b3c:one:1", "--comment=k3y", "--dependency=singleton", "--no-requeue", "--time=63",
        "--signal=B:TERM@120", "--partition=gpu", "--gres=gpu:1", "--mem=4G",
    } <= set(argv)  # fmt: skip
    assert not any(word.startswith(("--account", "--qos", "--constraint")) for word in argv)
    assert not any("secret" in word for word in argv)


def test_the_batch_script_becomes_the_agent_and_a_shell_reads_it(tmp_path):
    fake = tmp_path / "curtail"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$CURTAIL_TOKEN" "$@" "$$"\n')
    fake.chmod(0o755)
    script = batch_script(SlurmSection(curtail=str(fake), home=str(tmp_path / "with space")), REQUEST)
    process = subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(script)
    token, *words, pid = out.splitlines()
    assert token == SECRET and words[:3] == ["agent", "join", "https://c:8765"]
    assert words[3:] == ["--site", "one", "--region", "North", "--machines", "2", "--home",
                         f"{tmp_path}/with space/run-1a2b3c-one-1"]  # fmt: skip
    assert int(pid) == process.pid, "exec: Slurm's signal reaches the agent itself"


QUEUE = """\
12|curtail:run-1a2b3c:one:0|RUNNING|None|aaaa
13|curtail:run-1a2b3c:one:1|PENDING|Priority|bb|bb
14|curtail:other:one:0|RUNNING|None|cc
15|curtail:run-1a2b3c:one:2|TIMEOUT|TimeLimit|dd
16|somebody's|RUNNING|None|
"""


def test_the_queue_is_read_and_other_jobs_are_passed_over():
    found = parse_queue(QUEUE, "run-1a2b3c", "one")
    assert [(seen.machine, seen.state, seen.native, seen.key) for seen in found] == [
        (0, "running", "12", "aaaa"), (1, "pending", "13", "bb|bb"), (2, "gone", "15", "dd"),
    ]  # fmt: skip
    assert found[1].reason == "job 13; Slurm: pending, Priority"
    with pytest.raises(ProvisionError, match="unexpected line"):
        parse_queue("Last login: today\n", "r", "s")


def test_a_machine_that_is_in_the_queue_is_not_submitted_again():
    program = Program(QUEUE)
    seen = SlurmDriver(SlurmSection(), "run-1a2b3c", "one", program).ensure(REQUEST)
    assert seen.native == "13" and len(program.calls) == 1


def test_a_submission_answers_with_the_job_and_its_failure_with_slurms_words():
    program = Program("", "77;cluster\n")
    seen = SlurmDriver(SlurmSection(), "run-1a2b3c", "one", program).ensure(REQUEST)
    assert (seen.machine, seen.state, seen.native) == (1, "pending", "77")
    assert program.calls[1][1].startswith("#!/bin/sh\n") and "ct1.abc" in program.calls[1][1]
    program = Program("", Completed(1, "", "sbatch: error: invalid partition specified: x\n"))
    with pytest.raises(ProvisionError, match="invalid partition specified: x"):
        SlurmDriver(SlurmSection(), "r", "one", program).ensure(REQUEST)


def test_a_running_job_gets_a_signal_for_its_script_alone_and_a_late_or_waiting_one_is_cancelled():
    program = Program("", "", "", Completed(1, "", "scancel: error: Invalid job id 9\n"))
    made = SlurmDriver(SlurmSection(), "r", "one", program)
    running, waiting = Observed(0, "running", native="9"), Observed(0, "pending", native="9")
    made.release(running, 60.0, False)
    made.release(running, 60.0, True)
    made.release(waiting, 60.0, False)
    made.release(running, 60.0, True)  # it has ended meanwhile
    gentle = ["scancel", "--signal=TERM", "--batch", "9"]
    assert [argv for argv, _ in program.calls] == [gentle, *[["scancel", "9"]] * 3]


def test_states_of_slurm_are_known_once():
    assert not slurm.QUEUED & slurm.STARTED


# -- Kubernetes ------------------------------------------------------------------


class Cluster:
    """A stand-in for kubectl and a StatefulSet: the answers have the form of the real API's."""

    def __init__(self, replicas=0):
        self.replicas, self.verbs, self.pods = replicas, [], {}

    def __call__(self, argv, text=""):
        words = [word for word in argv if not word.startswith("--")]
        self.verbs.append(" ".join(words[1:3]))
        if words[1:3] == ["get", "statefulset"]:
            return Completed(0, json.dumps({"kind": "StatefulSet", "spec": {"replicas": self.replicas}}), "")
        if words[1:3] == ["get", "pods"]:
            items = [self.pod(number, phase) for number, phase in sorted(self.pods.items())]
            return Completed(0, json.dumps({"kind": "List", "items": items}), "")
        assert words[1] == "patch" and "--subresource=scale" in argv
        self.replicas = json.loads(argv[argv.index("--patch") + 1])["spec"]["replicas"]
        return Completed(0, "", "")

    def pod(self, number, phase):
        return {"metadata": {"name": f"curtail-a-site-{number}"}, "status": {"phase": phase}}


def test_machines_are_the_pods_up_to_the_scale():
    cluster = Cluster()
    made = KubernetesDriver(KubernetesSection(context="c", namespace="n"), "run", "A_Site", cluster)
    assert made.observe() == []
    for machine in (1, 0):
        made.ensure(Request("run", "A_Site", "R", machine, 2, "k", "u", "t", 60.0, 60.0))
    assert cluster.replicas == 2
    cluster.pods = {0: "Running", 1: "Pending"}
    assert [(seen.machine, seen.state) for seen in made.observe()] == [(0, "running"), (1, "pending")]
    made.release(Observed(1, "pending"), 60.0, False)
    made.release(Observed(1, "pending"), 60.0, True)
    assert cluster.replicas == 1
    assert [seen.machine for seen in made.observe()] == [0, 1], "a pod that drains still exists"
    del cluster.pods[1]
    assert [seen.machine for seen in made.observe()] == [0]
    assert set(cluster.verbs) == {"get statefulset", "get pods", "patch statefulset"}


def test_a_pods_reason_is_the_schedulers():
    unmet = {
        "type": "PodScheduled",
        "status": "False",
        "message": "0/3 nodes: no GPU",
    }
    pod = {"status": {"phase": "Pending", "conditions": [unmet]}}
    assert pod_state(pod) == ("pending", "Kubernetes: pending; 0/3 nodes: no GPU")
    image = {"status": {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}}
    assert pod_state(image) == ("pending", "Kubernetes: pending; ErrImagePull")
    assert pod_state({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}})[0] == "running"
    assert statefulset_name(KubernetesSection(), "A_b.C-") == "curtail-a-b-c"


@pytest.mark.parametrize(
    "answer,words",
    [
        (Completed(1, "", 'Error from server (Forbidden): pods is forbidden: User "x" cannot list\n'), "cannot list"),
        ("no json", "printed no JSON"),
        ("[]", "printed no object"),
    ],
)
def test_what_kubectl_cannot_do_is_said(answer, words):
    made = KubernetesDriver(KubernetesSection(), "run", "a", Program(answer))
    with pytest.raises(ProvisionError, match=words):
        made.observe()


# -- any program -----------------------------------------------------------------


def test_a_program_gets_json_and_its_answer_is_checked():
    program = Program('{"machine": 1, "state": "pending", "expected_s": 90, "id": "i-1", "reason": "spot"}')
    made = CommandDriver(("cloud", "--zone", "z"), "run", "one", program)
    seen = made.ensure(REQUEST)
    assert seen == Observed(1, "pending", "spot", "i-1", 90.0)
    argv, text = program.calls[0]
    assert argv == ["cloud", "--zone", "z", "ensure"] and json.loads(text)["token"] == SECRET
    assert not any("secret" in word for word in argv)
    program.answers = ['{"machines": [{"machine": 0, "state": "running"}, {"machine": 1, "state": "gone"}]}', "\n"]
    assert made.observe() == [Observed(0, "running")]
    made.release(Observed(1, "running", native="i-1"), 60.0, True)
    assert json.loads(program.calls[-1][1]) == {
        "run": "run", "site": "one", "machine": 1, "key": "", "id": "i-1", "grace_s": 60.0, "now": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    ["", "no", "[]", "{}", '{"machine": 0, "state": "pending"}', '{"machine": true, "state": "pending"}',
     '{"machine": 1, "state": "on"}', Completed(3, "", "quota\n")],
)  # fmt: skip
def test_an_answer_that_says_nothing_of_the_machine_is_an_error(answer):
    with pytest.raises(ProvisionError):
        CommandDriver(("cloud",), "run", "one", Program(answer)).ensure(REQUEST)


def test_a_real_program_is_run_with_its_input_and_its_end_is_told(monkeypatch):
    assert run_program([sys.executable, "-c", "print(input()[::-1])"], "abc").out == "cba\n"
    with pytest.raises(ProvisionError, match="could not be run"):
        run_program(["/no/such/program"])
    monkeypatch.setattr(driver, "CALL_S", 0.05)
    with pytest.raises(ProvisionError, match="did not answer within"):
        run_program([sys.executable, "-c", "import time; time.sleep(60)"])
