# SPDX-License-Identifier: Apache-2.0
"""The faults of MONAI Label 0.8.5 (GHSA-qc22-rmgc-vg94 among them), tried on this server."""

import io
import json
import socket
import tarfile
from pathlib import Path

import pytest

from covid_monai import cli
from covid_monai.label.faults import LabelError
from covid_monai.label.names import check_name, check_tag
from covid_monai.label.server import ServerSettings
from tests.label.server import LabelServer, free_port


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_other_hosts_are_refused(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", str(tmp_path), "--host", host]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="is no folder"):
        ServerSettings(str(tmp_path / "missing"), tmp_path).check()
    with pytest.raises(ValueError, match="holds credentials"):
        ServerSettings("http://me:secret@127.0.0.1/dicom-web", tmp_path).check()
    port = free_port()
    ServerSettings(str(tmp_path), tmp_path, port=port).check()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(LabelError, match=f"port {port} of 127.0.0.1 is not"):
        ServerSettings(str(tmp_path), tmp_path, port=port).check()
    with pytest.raises(LabelError, match="99999 is no port"):
        ServerSettings(str(tmp_path), tmp_path, port=99999).check()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "", "a\x00b", "..", "x" * 201])
def test_names_stay_in_their_folder(name: str) -> None:
    with pytest.raises(LabelError, match="is no name of an image"):
        check_name(name)
    with pytest.raises(LabelError, match="is no tag"):
        check_tag(name)


def test_plain_names_are_taken() -> None:
    assert check_name("Patient 3, früh (2).v1") == "Patient 3, früh (2).v1"
    assert check_tag("original") == "original"


def test_the_datastore_itself_refuses_what_monai_labels_own_lets_out_of_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("monailabel", reason="MONAI Label is not installed (make label-install)")
    from covid_monai.label.compatibility import prepare_monailabel

    prepare_monailabel()
    from monailabel.datastore.local import LocalDatastore

    from covid_monai.label.datastores import FolderDatastore

    file = tmp_path / "file.nii.gz"
    file.write_bytes(b"planted")
    LocalDatastore(str(tmp_path / "stock")).add_image("../planted", str(file), {})
    assert (tmp_path / "planted.nii.gz").exists()  # the fault, as it is

    (tmp_path / "planted.nii.gz").unlink()
    ours = FolderDatastore(str(tmp_path / "ours"), {"lesion": 1}, auto_reload=False)
    with pytest.raises(LabelError):
        ours.add_image("../planted", str(file), {})
    with pytest.raises(LabelError):
        ours.save_label("../planted", str(file), "final", {})
    with pytest.raises(LabelError):
        ours.scan_path(str(file))
    with pytest.raises(LabelError):
        ours.label_path("scan", "../..")
    assert not (tmp_path / "planted.nii.gz").exists()


@pytest.mark.slow
def test_nothing_is_written_or_read_outside_the_folder(folder_server: LabelServer, tmp_path: Path) -> None:
    studies = Path(folder_server.ask("GET", "/datastore/image/info", params={"image": "scan1"}).json()["path"]).parent
    before = sorted(studies.rglob("*"))
    file = {"file": ("x.nii.gz", b"planted"), "params": (None, "{}")}
    label = {"label": ("x.nii.gz", b"planted"), "params": (None, "{}")}
    for path in ("/datastore/image", "/datastore/", "/datastore"):
        assert folder_server.ask("PUT", path, params={"image": "../planted"}, files=file).status_code == 403
        assert folder_server.ask("DELETE", path, params={"id": "scan1"}).status_code == 403
    for tag in ("../..", "..%2f..", "/tmp", "a/b"):
        saved = folder_server.ask("PUT", f"/datastore/label?image=scan1&tag={tag}", files=label)
        assert saved.status_code == 400, tag
        assert folder_server.ask("GET", f"/datastore/label?label=scan1&tag={tag}").status_code == 400
    outside = tmp_path / "outside.nii.gz"
    outside.write_bytes((studies / "scan1.nii.gz").read_bytes())
    for image in (str(outside), "../scan1", "..%2fscan1"):
        assert folder_server.infer("lungs", image).status_code == 400
    hidden = folder_server.infer("lungs", "scan1", {"image": str(outside)})  # MONAI Label lets params replace the image
    assert hidden.status_code == 400
    uploaded = folder_server.ask("POST", "/infer/lungs", files={"file": ("x.nii.gz", outside.read_bytes())})
    assert uploaded.status_code == 400
    batch = folder_server.ask("POST", "/batch/infer/lungs?run_sync=true", json={"images": [str(outside)]})
    assert "no name of an image" in batch.json()[str(outside)]["error"]
    assert sorted(studies.rglob("*")) == before
    assert not list(studies.parent.rglob("planted*"))


@pytest.mark.slow
def test_a_mask_is_not_given_with_the_codes_of_another_organ(folder_server: LabelServer) -> None:
    response = folder_server.ask("POST", "/infer/lesions?image=scan1&output=dicom_seg", data={"params": "{}"})
    assert response.status_code == 400
    assert response.json()["detail"] == "a mask is not given as dicom_seg: save it as a label, which is sent as one."


@pytest.mark.slow
def test_sessions_are_closed(folder_server: LabelServer) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("../../planted")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"xyz"))
    sent = {"files": ("x.tar", archive.getvalue())}
    assert folder_server.ask("PUT", "/session/?uncompress=true", files=sent).status_code == 403
    assert folder_server.ask("PUT", "/session?uncompress=true", files=sent, allow_redirects=False).status_code == 403
    for method in ("GET", "DELETE"):
        assert folder_server.ask(method, "/session/%2e%2e").status_code == 403
    response = folder_server.infer("lungs", "", {"session_id": "../x"})
    assert not response.ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/model/lesions"),
        ("DELETE", "/model/lesions"),
        ("GET", "/logs/"),
        ("GET", "/datastore/dataset"),
        ("POST", "/reload"),
        ("POST", "/infer/wsi_v2/lesions"),
        ("GET", "/proxy/dicom/../instances"),
        ("GET", "/proxy/dicom/%2e%2e/instances"),
        ("GET", "/proxy/dicom/system"),
        ("POST", "/proxy/dicom/studies"),
    ],
)
def test_routes_without_a_use_are_closed(folder_server: LabelServer, method: str, path: str) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", folder_server.port, timeout=60)  # keeps the path as it is
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == 403
    assert json.loads(response.read())["detail"]


@pytest.mark.slow
def test_other_servers_pages_are_refused(folder_server: LabelServer) -> None:
    assert folder_server.ask("GET", "/info/", headers={"Host": "evil.example:8000"}).status_code == 421
    assert folder_server.ask("GET", "/info/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert folder_server.ask("GET", "/info/", headers={"Origin": folder_server.url}).ok
    assert folder_server.ask("GET", "/info/", headers={"Host": f"localhost:{folder_server.port}"}).ok


@pytest.mark.slow
def test_the_server_listens_on_loopback_alone(folder_server: LabelServer) -> None:
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = [
        words[1] for words in listening if words[3] == "0A" and words[1].endswith(f":{folder_server.port:04X}")
    ]
    assert addresses == [f"0100007F:{folder_server.port:04X}"]
