"""The page docs/deploy.md: what it says to run."""

import re
import subprocess

import pytest

from gateway.api_keys import is_key
from tests.k8s.rendered import FOLDER, ROOT, overlay
from tests.k8s.test_manifests import SECRETS

PAGE = (ROOT / "docs" / "deploy.md").read_text()


def test_what_is_applied_is_there() -> None:
    """Each `kubectl apply -k` of the pages names a folder that renders."""
    folders = set(re.findall(r"kubectl apply -k (k8s/[\w/-]+)", PAGE + (FOLDER / "README.md").read_text()))
    assert {f"k8s/overlays/{name}" for name in ("cpu-demo", "single-gpu", "prod")} == folders
    for folder in folders:
        assert overlay(folder.rpartition("/")[2]).find("Deployment", "gateway")


def test_an_admin_key_is_made_as_the_page_says() -> None:
    """The line that makes one gives a key that the gateway takes."""
    (line,) = re.findall(r"^ +(printf .+) > admin.key$", PAGE, re.MULTILINE)
    made = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, check=True).stdout
    assert is_key(made.strip()), made


@pytest.mark.parametrize("name", [name for name in SECRETS if name not in ("edge-tls", "unitune-db-app")])
def test_every_secret_is_told_of(name: str) -> None:
    """What the overlay `prod` needs of an operator stands in the page with its keys, and in the component that fetches
    it from a vault."""
    row = next(line for line in PAGE.splitlines() if re.match(r" +\| `", line) and f"`{name}`" in line)
    assert all(f"`{key}`" in row for key in SECRETS[name])
    fetched = overlay("prod").find("ExternalSecret", name)["spec"]
    assert {one["secretKey"] for one in fetched["data"]} == SECRETS[name].keys()
    assert fetched["target"]["name"] == name
