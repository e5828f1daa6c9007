"""The autoscaler's file for AWS, read by Ray itself. No cloud is asked."""

import copy
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.files import DEPLOY, ROOT


@pytest.fixture
def config() -> dict[str, Any]:
    """What `ray up` reads."""
    read: dict[str, Any] = yaml.safe_load((DEPLOY / "ray" / "cluster-aws.yaml").read_text())
    return read


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    filled = prepare_config(copy.deepcopy(config))  # as ray up does
    validate_config(filled)
    assert filled["available_node_types"]["head"]["max_workers"] == 0
    assert filled["available_node_types"]["gpu-spot"]["max_workers"] == filled["max_workers"]


def test_ray_refuses_it_with_a_mistake(config: dict[str, Any]) -> None:
    config["idle_timeout"] = config.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(config))


def test_workers_are_spot_machines_with_gpus_and_the_head_computes_nothing(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert types
    for worker in types.values():
        assert worker["resources"]["GPU"] > 0
        assert worker["min_workers"] == 0
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_ray_is_started_with_a_token_that_every_machine_gets(config: dict[str, Any]) -> None:
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
        assert "dashboard-host" not in command  # it stays on the loopback interface
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    assert any("RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in config["setup_commands"])


def test_no_machine_is_open_to_the_world_or_holds_a_key(config: dict[str, Any]) -> None:
    assert "security_group" not in config["provider"]  # Ray would add port 22 for everybody
    for node_type in config["available_node_types"].values():
        node = node_type["node_config"]
        assert node["SecurityGroupIds"]
        assert set(node["IamInstanceProfile"]) == {"Name"}
        assert node["MetadataOptions"] == {"HttpTokens": "required"}
        assert all(device["Ebs"]["Encrypted"] for device in node["BlockDeviceMappings"])


def test_what_is_sent_to_the_machines_is_made_here(config: dict[str, Any]) -> None:
    sources = set(config["file_mounts"].values())
    assert sources == {"dist", "constraints.txt", "~/.ray/auth_token"}
    assert (ROOT / "constraints.txt").is_file()
    page = (DEPLOY / "README.md").read_text()
    assert "make wheel" in page
    assert "ray get-auth-token --generate" in page
