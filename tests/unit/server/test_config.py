"""Settings: where they come from, which wins, and that a typo never runs with a default."""

from __future__ import annotations

from pathlib import Path

import pytest

from milepost_server.config import ConfigError, ServerConfig, read_config, sections, settings
from milepost_server.limits import DEFAULT_LIMITS


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "milepost.toml"
    file.write_text(text)
    return file


def test_without_any_source_all_is_default() -> None:
    assert read_config() == ServerConfig()
    assert read_config().limits == DEFAULT_LIMITS


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'data_dir = "file"\nlog_level = "error"\ndrain_grace_s = 1\n')
    environment = {"MILEPOST_SERVER__DATA_DIR": "environment", "MILEPOST_SERVER__LOG_LEVEL": "debug"}
    config = read_config({"data_dir": "flag"}, environment=environment, file=file)
    assert (config.data_dir, config.log_level, config.drain_grace_s) == ("flag", "debug", 1.0)


def test_sections_are_read_from_the_file_and_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "[limits]\nentries_max = 10\nlabels_max = 3\n[queue]\ncalls_max = 7\n")
    config = read_config(environment={"MILEPOST_SERVER__LIMITS__ENTRIES_MAX": "11"}, file=file)
    assert (config.limits.entries_max, config.limits.labels_max, config.queue.calls_max) == (11, 3, 7)


def test_text_of_the_environment_becomes_what_the_setting_is() -> None:
    config = read_config(
        environment={
            "MILEPOST_SERVER__LISTEN": "127.0.0.1:1, unix:s",
            "MILEPOST_SERVER__INSECURE": "true",
            "MILEPOST_SERVER__QUEUE__SWEEP_INTERVAL_S": "0.5",
        }
    )
    assert config.listen == ("127.0.0.1:1", "unix:s")
    assert config.insecure is True
    assert config.queue.sweep_interval_s == 0.5


def test_other_variables_are_left_alone() -> None:
    # Kubernetes sets names like the first one for a service called "milepost".
    read_config(environment={"MILEPOST_PORT": "tcp://10.0.0.1:7450", "MILEPOST_SERVER_PORT": "1", "PATH": "/"})


@pytest.mark.parametrize(
    "variable,meant",
    [
        ("MILEPOST_SERVER__DATADIR", "MILEPOST_SERVER__DATA_DIR"),
        ("MILEPOST_SERVER__LIMITS__ENTRYS_MAX", "MILEPOST_SERVER__LIMITS__ENTRIES_MAX"),
        ("MILEPOST_SERVER__data_dir", None),
        ("MILEPOST_SERVER__ZZZZZZ", None),
        ("MILEPOST_SERVER__LIMITS", None),
        ("MILEPOST_SERVER_DATA_DIR", "MILEPOST_SERVER__DATA_DIR"),
        ("MILEPOST_SERVER_QUEUE_CALLS_MAX", "MILEPOST_SERVER__QUEUE__CALLS_MAX"),
    ],
)
def test_a_typo_in_the_environment_is_refused_with_what_was_meant(variable: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(environment={variable: "1"})
    assert variable in str(refused.value)
    if meant:
        assert f"did you mean {meant}?" in str(refused.value)


@pytest.mark.parametrize(
    "text,said",
    [
        ('data_dri = "x"', "did you mean data_dir?"),
        ("[limits]\nentry_max = 1", "did you mean entries_max?"),
        ("[limit]\nentries_max = 1", "did you mean limits?"),
        ("limits = 3", "section"),
        ("data_dir = ", "--config"),
        ("log_level = 3", "log_level"),
        ('log_level = "INFO"', "log_level: invalid enum value 'INFO'; it is one of debug, info, warning, error"),
        ('listen = "127.0.0.1:7450"', "listen: expected a list in brackets, "),
    ],
)
def test_a_mistake_in_the_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(file=write(tmp_path, text))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(file=tmp_path / "none.toml")


@pytest.mark.parametrize(
    "variable,text",
    [
        ("QUEUE__CALLS_MAX", "0"),
        ("QUEUE__CALLS_MAX", "many"),
        ("QUEUE__BYTES_MAX", str(2**20)),
        ("LOG_LEVEL", "loud"),
        ("ENGINE", "sqlite"),
        ("LIMITS__ENTRIES_MAX", "0"),
        ("LIMITS__ENTRIES_MAX", "-1"),
        ("LIMITS__JSON_DEPTH_MAX", "513"),
        ("LIMITS__STATE_BYTES_MAX", str(2**40)),
        ("LIMITS__METADATA_BYTES_MAX", str(2**26)),
        ("LIMITS__METADATA_DEPTH_MAX", "513"),
        ("LIMITS__PAGE_SIZE_DEFAULT", "1001"),
        ("DRAIN_GRACE_S", "-1"),
        ("INSECURE", "perhaps"),
        ("GC_THRESHOLD", str(2**31)),
        ("QUEUE__SWEEP_INTERVAL_S", "inf"),
        ("QUEUE__REOPEN_WAIT_MAX_S", "inf"),
        ("LIMITS__REQUEST_BYTES_MAX", str(2**31)),
        ("LIMITS__NAMESPACE_BYTES_MAX", "1024"),
        ("LIMITS__CHECKPOINT_ID_BYTES_MAX", "512"),
        ("LIMITS__WORKFLOW_ID_BYTES_MAX", "1025"),
        ("LIMITS__REPLAY_WINDOW_MS", str(2**64)),
        ("LIMITS__LEASE_TTL_MIN_MS", "30001"),
        ("LIMITS__LEASE_TTL_DEFAULT_MS", "3600001"),
        ("MAP_SIZE_MAX_BYTES", str(2**20)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_config(environment={f"MILEPOST_SERVER__{variable}": text})
    assert variable.lower().replace("__", ".") in str(refused.value)


def test_every_setting_tells_what_it_is() -> None:
    described = {setting.name: setting.description for setting in settings()}
    assert set(described) | set(sections()) == set(ServerConfig.__struct_fields__)
    assert all(text.endswith(".") for text in described.values())
