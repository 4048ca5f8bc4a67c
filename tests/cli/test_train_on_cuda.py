"""``packedbag train --device cuda``: what is refused, and what a run on a GPU says and writes."""

import json
import sys

import pytest
import torch

from packedbag.cli.app import main
from packedbag.io.tables import load
from tests.devices import hosted

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here; --hosted makes some")


@pytest.fixture
def train(capsys, monkeypatch):
    """Run ``packedbag train libfm`` in this process, which has the devices; return exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["packedbag", "train", "libfm", *map(str, arguments)])
        monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # main() would leave it set in this process
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def arguments(tmp_path):
    path = tmp_path / "f"
    path.write_text("".join(f"{row % 5} {row % 7}:1 {row % 11 + 7}:1\n" for row in range(200)))
    small = ("--embedding-dim", 32, "--hidden", "8", "--batch-size", 64, "--min-count", 1, "--unseen-rows", 2)
    return ("--data", path, "--threshold", 2, "--no-memory", "--output", tmp_path / "o", "--epochs", 2, *small)


def refused(found, message):
    code, out, err = found
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"


def test_without_a_gpu_the_error_is_one_line(train, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    doctor = "`packedbag doctor` says what this machine has."
    message = f"--device is 'cuda'; it must be cpu: torch finds no GPU here. {doctor}"
    refused(train(*arguments, "--device", "cuda"), message)
    assert not (tmp_path / "o").exists()


def test_what_is_no_device_is_refused_before_the_data_are_read(train):
    message = "--device is 'gpu'; it must be cpu, cuda, or cuda:1 for the second GPU."
    refused(train("--data", "/none", "--device", "gpu"), message)


def test_several_processes_train_on_cpus(train):
    message = (
        "--device is 'cuda' with --sharding; it must be cpu: the processes of --sharding train on CPUs. "
        "Leave out --sharding to train on one GPU."
    )
    refused(train("--data", "/none", "--device", "cuda", "--sharding", "row"), message)


def test_the_json_of_a_run_on_the_cpu_says_so(train, arguments, tmp_path):
    code, out, err = train(*arguments, "--json", tmp_path / "r.json")
    assert code == 0, err
    assert json.loads((tmp_path / "r.json").read_text())["device"] == "cpu"
    assert "device" not in out + err
    assert "trained on" not in out


@gpu
def test_a_run_on_a_gpu_says_so_and_goes_on_on_a_cpu(train, arguments, tmp_path):
    code, out, err = train(*arguments, "--device", "cuda", "--json", tmp_path / "r.json")
    assert code == 0, err
    name = torch.cuda.get_device_name(0)
    assert f"device: cuda:0 ({name}); packed tables by the backend cupy_cuda\n" in err
    assert out.endswith(f"trained on cuda:0 ({name}).\n")
    assert json.loads((tmp_path / "r.json").read_text())["device"] == "cuda:0"
    assert len(list((tmp_path / "o" / "packed" / "tables").glob("*.safetensors"))) == 1
    before = load(tmp_path / "o" / "packed" / "tables" / "features.safetensors").words.copy()
    code, out, err = train(*arguments, "--resume", "-q")  # a finished run: scored and exported again
    assert (code, err) == (0, "")
    assert (load(tmp_path / "o" / "packed" / "tables" / "features.safetensors").words == before).all()


@gpu
def test_a_step_on_a_gpu_is_measured_there(train, arguments, tmp_path):
    if hosted():
        pytest.skip("a child process has no devices in the host's memory")
    code, out, err = train(*arguments, "--memory", "--device", "cuda", "--compare", "--json", tmp_path / "r.json")
    assert code == 0, err
    assert "the peak in a step is that of torch's allocator there.\n" in out
    numbers = json.loads((tmp_path / "r.json").read_text())
    large = [line["large_peak_bytes"] for line in numbers["lines"]]
    assert large[0] < large[2] < large[1]
