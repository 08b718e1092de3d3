"""What a run is made of can be told, whether it was installed or not."""

from compass.machine.versions import installed_versions


def test_a_package_that_is_not_installed_is_said_to_be_so() -> None:
    versions = installed_versions("torch", "no-such-package")
    assert versions["torch"].startswith("2.")
    assert versions["no-such-package"] == "not installed"
    assert versions["python"].startswith("3.")
