"""Metrics on disk, and what happens when there is no room for them."""

import threading

import pytest

from jaxreg.training.logs import METRICS_COLUMNS, MetricsLog, read_metrics, read_seconds

resource = pytest.importorskip("resource")
VALUES = {"train_loss": 2.5, "train_translation": 1.0, "gradient_norm": 3.0, "eval_loss": 1e-3}


@pytest.fixture
def little_room():
    """No file may grow beyond 8 KB, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_and_does_not_hang_it(tmp_path, little_room):
    log = MetricsLog(tmp_path, 0)
    errors = []

    def write():
        try:
            for step in range(1, 1000):
                log.write(step, VALUES, 0.5)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    # Its events take more room than the table's.
    assert "tensorboard/events" in errors[0].filename
    with pytest.raises(OSError, match="tensorboard"):
        log.close()


def test_tensorboard_gets_the_same_numbers_and_forgets_what_is_repeated(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(1, VALUES, 0.5)
    log.write(2, VALUES, 0.5)
    log.close()
    MetricsLog(tmp_path, 1).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == ["1"]
    events = [event for path in (tmp_path / "tensorboard").iterdir() for event in read(path)]
    scalars = {(e.step, v.tag): v.simple_value for e in events for v in e.summary.value}
    assert scalars[1, "train/loss"] == scalars[2, "train/loss"] == 2.5
    assert scalars[1, "train/gradient_norm"] == 3.0
    assert scalars[2, "eval/loss"] == pytest.approx(1e-3)
    assert max(e.step for e in events if e.session_log.status) == 2  # where the second start begins


HEADER = ",".join(METRICS_COLUMNS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,c\n1,2,3\n", "its columns are a,b,c"),
        (f"{HEADER}\n1,2\n".encode(), "row 2 has 2 cells"),
        (f"{HEADER}\none,,,,,,,,,2\n".encode(), "row 2 has 'one' as step"),
        (f"{HEADER}\n1,,,,,,,,,2\n2,,,,,,,,,\n".encode(), "row 3 has '' as seconds"),
        (f"{HEADER}\n1,much,,,,,,,,2\n".encode(), "row 2 has 'much' as train_loss"),
        (b"\xff\xfe\n", "can't decode byte 0xff"),
    ],
)
def test_a_damaged_log_is_named_and_costs_a_reader_the_time_alone(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not as .*{message}.*restore it, or remove it"):
        MetricsLog(tmp_path, 1)
    assert path.read_bytes() == content
    assert read_seconds(tmp_path, 1) is None


def test_seconds_are_those_up_to_the_step(tmp_path):
    assert read_seconds(tmp_path, 1) is None
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, VALUES, 0.5)
    log.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,cut sho")
    assert [read_seconds(tmp_path, step) for step in (0, 1, 2, 9)] == [None, 0.5, 1.0, 1.5]


def read(path):
    from tensorboardX.proto.event_pb2 import Event

    from jaxreg.data.tfds import tfrecord_records

    return [Event.FromString(record) for record in tfrecord_records(path)]
