# SPDX-License-Identifier: Apache-2.0
import base64
import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pynetdicom import AE, evt

from covid_monai.ct import read_ct
from covid_monai.ct.exchange import (
    PASSWORD,
    USER,
    ExchangeError,
    UnencryptedWarning,
    check_address,
    connect,
    fetch_series,
    send,
)
from covid_monai.ct.sources import read_sources
from tests.ct.series import datasets, write
from tests.orthanc import running_orthanc

STUDY, SERIES = "1.2", "1.2.3"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    """Neither the environment nor a .netrc of who runs the tests."""
    monkeypatch.delenv(USER, raising=False)
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def files(tmp_path):
    return sorted(write(tmp_path / "files", datasets(slices=3)).iterdir())


def encoded(dataset):
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def multipart(parts):
    body = b"".join(b"--X\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
    return body + b"--X--\r\n", 'multipart/related; type="application/dicom"; boundary=X'


def series_found(count=None):
    found = {"0020000E": {"vr": "UI", "Value": [SERIES]}}
    if count is not None:
        found["00201209"] = {"vr": "IS", "Value": [count]}
    return json.dumps([found]).encode(), "application/dicom+json"


@contextmanager
def dicomweb(*answers):
    """A server that gives these answers, a status or a body with its type, one by one; yields URL and requests.

    Of a body with a length too, less is sent than was announced.
    """
    seen, waiting = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.path, dict(self.headers)))
            answer = waiting.pop(0)
            status, (body, kind, *sent) = (answer, (b"", "text/plain")) if isinstance(answer, int) else (200, answer)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: sent[0]] if sent else body)

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", seen
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def store(*statuses, syntaxes=None, titles=("ARCHIVE", "COVID_MONAI")):
    """A C-STORE receiver that gives these statuses, one after the other; yields address and what it stored."""
    stored, waiting = [], list(statuses)

    def receive(event):
        status = waiting.pop(0)
        if status is None:
            event.assoc.abort()
            return 0xA700
        stored.append((event.assoc.requestor.ae_title, event.request.AffectedSOPInstanceUID))
        return status

    entity = AE(ae_title=titles[0])
    entity.require_called_aet, entity.require_calling_aet = True, [titles[1]]
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", syntaxes)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, receive)])
    try:
        yield f"dicom://ARCHIVE@127.0.0.1:{server.server_address[1]}", stored
    finally:
        server.shutdown()


def test_fetch(tmp_path):
    slices = datasets(slices=3)
    seen = []
    with dicomweb(series_found(3), multipart(map(encoded, slices))) as (url, requests):
        folder = fetch_series(url + "/", STUDY, SERIES, tmp_path / "new" / "series", lambda *done: seen.append(done))
    assert [dcmread(file) for file in sorted(folder.iterdir())] == slices
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert requests[1][0] == f"/dicom-web/studies/{STUDY}/series/{SERIES}"
    assert "Authorization" not in requests[0][1]
    assert [path.name for path in folder.parent.iterdir()] == ["series"]


def test_fetch_into_an_empty_folder_from_a_server_that_does_not_count(tmp_path):
    (tmp_path / "here").mkdir()
    seen = []
    with dicomweb(series_found(), multipart(map(encoded, datasets(slices=3)))) as (url, _):
        fetch_series(url, STUDY, SERIES, tmp_path / "here", lambda *done: seen.append(done))
    assert seen[-1] == (3, None)
    assert len(list((tmp_path / "here").iterdir())) == 3


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(b"[]", "application/json")], "has no such series: check the UIDs"),
        ([(series_found(3)[0].replace(b"1.2.3", b"1.2.4"), "application/json")], "has no such series"),
        ([404], "HTTP status 404: check the address"),
        ([500], "HTTP status 500"),
        ([503], "HTTP status 503"),
        ([401], f"refuses access .* set {USER} and {PASSWORD}"),
        ([403], "refuses access"),
        ([(b"<html>", "text/html")], "no DICOMweb"),
        ([series_found(3), 404], "HTTP status 404"),
        ([series_found(3), (b"<html>", "text/html")], "no DICOMweb"),
        ([series_found(3), multipart([b"nonsense"])], "no DICOMweb"),
        ([series_found(3), multipart(map(encoded, datasets(slices=2)))], "sent 2 of 3 instances .* nothing is kept"),
        ([series_found(), multipart([])], "no DICOMweb"),
        ([series_found(3), multipart(map(encoded, datasets(slices=3, series="1.2.4")))], "of another series"),
        ([series_found(1), multipart([encoded(datasets(slices=1)[0])[:400]])], "broke off within an instance"),
    ],
)
def test_fetch_that_fails_leaves_nothing(answers, message, tmp_path):
    with dicomweb(*answers) as (url, _), pytest.raises(ExchangeError, match=message) as fault:
        fetch_series(url, STUDY, SERIES, tmp_path / "series")
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(fault.value)


def test_fetch_that_breaks_off_leaves_nothing(tmp_path):
    body, kind = multipart(map(encoded, datasets(slices=3)))
    with dicomweb(series_found(3), (body, kind, len(body) - 500)) as (url, _), pytest.raises(ExchangeError) as fault:
        fetch_series(url, STUDY, SERIES, tmp_path / "series")
    assert "broke off" in str(fault.value)
    assert list(tmp_path.iterdir()) == []


def test_fetch_into_a_folder_with_files(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not an empty folder"):
        fetch_series("http://127.0.0.1:9/dicom-web", STUDY, SERIES, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("uid", ["", "1.2/../3", "1.2.", "1.02", "1" * 65, "*"])
def test_fetch_of_what_is_no_uid(uid, tmp_path):
    with pytest.raises(ExchangeError, match="no UID of a series"):
        fetch_series("http://127.0.0.1:9/dicom-web", STUDY, uid, tmp_path / "series")


def test_fetch_by_dicom(tmp_path):
    with pytest.raises(ExchangeError, match="fetched by DICOMweb"):
        fetch_series("dicom://ARCHIVE@127.0.0.1:104", STUDY, SERIES, tmp_path / "series")


def test_nobody_there(files, tmp_path):
    with pytest.raises(ExchangeError, match="cannot be reached"):
        fetch_series("http://127.0.0.1:9/dicom-web", STUDY, SERIES, tmp_path / "series")
    for address in ("http://127.0.0.1:9/dicom-web", "dicom://ARCHIVE@127.0.0.1:9"):
        with pytest.raises(ExchangeError, match="cannot be reached"):
            send(files, address)


def test_credentials_of_the_environment_are_used_and_not_told(files, monkeypatch, caplog):
    monkeypatch.setenv(USER, "ada")
    monkeypatch.setenv(PASSWORD, "s3cret")
    caplog.set_level(logging.DEBUG)
    with dicomweb(401) as (url, requests), pytest.raises(ExchangeError, match="refuses access") as fault:
        send(files[:1], url)
    assert requests[0][1]["Authorization"] == "Basic " + base64.b64encode(b"ada:s3cret").decode()
    assert "s3cret" not in caplog.text + str(fault.value)


def test_a_client_uses_the_credentials_of_the_environment(monkeypatch):
    monkeypatch.setenv(USER, "ada")
    monkeypatch.setenv(PASSWORD, "s3cret")
    with dicomweb(series_found()) as (url, requests):
        assert len(connect(url).search_for_series()) == 1
    assert requests[0][1]["Authorization"] == "Basic " + base64.b64encode(b"ada:s3cret").decode()


def test_credentials_of_netrc(files, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password s3cret\n")
    (tmp_path / "netrc").chmod(0o600)
    with dicomweb((b"{}", "application/json")) as (url, requests):
        send(files[:1], url)
    assert requests[0][1]["Authorization"] == "Basic " + base64.b64encode(b"ada:s3cret").decode()


def test_half_of_the_credentials(files, monkeypatch):
    monkeypatch.setenv(USER, "ada")
    with pytest.raises(ExchangeError, match=f"Only one of {USER} and {PASSWORD}"):
        send(files, "http://127.0.0.1:9/dicom-web")


def test_credentials_in_the_address(files):
    with pytest.raises(ExchangeError, match=f"holds credentials.* set {USER}") as fault:
        send(files, "https://ada:s3cret@pacs.example/dicom-web")
    assert "s3cret" not in str(fault.value)


@pytest.mark.parametrize(
    "address",
    [
        *("pacs.example", "ftp://pacs.example/dicom", "http://", "https://pacs.example/dicom-web?token=1"),
        *("http://pacs.example:port/", "dicom://pacs.example:104", "dicom://ARCHIVE@pacs.example"),
        *("dicom://A@B@C@pacs.example:104", "dicom://@pacs.example:104", "dicom://SEVENTEEN_LETTERS@pacs.example:104"),
        *("dicom://A\\B@pacs.example:104", "dicom://ARCHIVE@pacs.example:104/path", "dicom://ARCHIVE@:104"),
    ],
)
def test_what_is_no_address(address, files):
    for use in (check_address, lambda address: send(files, address)):
        with pytest.raises(ExchangeError, match=r"DICOM server.* give"):
            use(address)


@pytest.mark.parametrize("address", ["http://pacs.invalid/dicom-web", "dicom://ARCHIVE@pacs.invalid:104"])
def test_another_machine_without_tls_gives_a_warning(address, files):
    with pytest.warns(UnencryptedWarning, match=r"pacs\.invalid unencrypted"), pytest.raises(ExchangeError):
        send(files, address)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "address",
    ["https://pacs.example/dicom-web", "http://pacs.example:8042/dicom-web/", "dicom://ME@ARCHIVE@pacs.example:104"],
)
def test_what_is_an_address(address):
    assert check_address(address) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_this_machine_gives_none(host, files):
    with pytest.raises(ExchangeError, match="cannot be reached"):
        send(files, f"http://{host}:9/dicom-web")


def test_send_by_stow(files):
    done = []
    with dicomweb(*[(b"{}", "application/dicom+json")] * 3) as (url, requests):
        send(files, url, lambda *count: done.append(count))
    assert [path for path, _ in requests] == ["/dicom-web/studies"] * 3
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_what_stow_refuses_is_named_and_counted(files):
    failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}
    answers = [409, (json.dumps(failed).encode(), "application/dicom+json"), (b"{}", "application/dicom+json")]
    with dicomweb(*answers) as (url, _), pytest.raises(ExchangeError) as fault:
        send(files, url)
    assert f"{files[0].name} (HTTP status 409); {files[1].name} (failure reason 272)" in str(fault.value)
    assert str(fault.value).endswith("1 of 3 files were sent.")


def test_access_that_ends_meanwhile(files):
    message = r"^1 of 3 files were sent, then: .* refuses access"
    with dicomweb((b"{}", "application/json"), 401) as (url, _), pytest.raises(ExchangeError, match=message):
        send(files, url)


def test_send_by_c_store(files):
    done = []
    with store(0x0000, 0xB000, 0x0000) as (address, stored):
        send(files, address, lambda *count: done.append(count))
    assert stored == [("COVID_MONAI", dcmread(file).SOPInstanceUID) for file in files]
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_the_calling_title_can_be_given(files):
    with store(0x0000, titles=("ARCHIVE", "MY_STATION")) as (address, stored):
        send(files[:1], address.replace("//", "//MY_STATION@"))
    assert stored[0][0] == "MY_STATION"


def test_what_c_store_refuses_is_named_and_counted(files):
    with store(0x0000, 0xA700, 0x0000) as (address, stored), pytest.raises(ExchangeError) as fault:
        send(files, address)
    assert len(stored) == 3
    assert f"refused {files[1].name} (C-STORE status 0xa700, Failure): 2 of 3 files were sent." in str(fault.value)


def test_a_refused_association(files):
    message = "refused the association: Called AE title not recognised"
    with store(titles=("OTHER", "COVID_MONAI")) as (address, _), pytest.raises(ExchangeError, match=message):
        send(files, address)


def test_nothing_of_it_accepted(files):
    message = "accepts none of the kinds of objects"
    with store(syntaxes=["1.2.840.10008.1.2.4.90"]) as (address, _), pytest.raises(ExchangeError, match=message):
        send(files, address)


def test_an_association_that_ends_meanwhile(files):
    message = r"^1 of 3 files were sent, then: .* broke off"
    with store(0x0000, None) as (address, _), pytest.raises(ExchangeError, match=message):
        send(files, address)


def test_a_kind_that_is_not_accepted_is_named_and_counted(files, tmp_path):
    other = dcmread(files[2])
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
    other.save_as(files[2])
    with store(0x0000, 0x0000) as (address, _), pytest.raises(ExchangeError) as fault:
        send(files, address)
    assert f"refused {files[2].name} (this kind of object or its transfer syntax is not accepted): 2 of 3" in str(
        fault.value
    )


@pytest.mark.parametrize("name", ["there.dcm", "missing.dcm"])
def test_what_is_no_dicom_is_found_before_anything_is_sent(name, files, tmp_path):
    (tmp_path / "there.dcm").write_text("no DICOM")
    with store() as (address, stored), pytest.raises(ExchangeError, match=f"{name} is missing or no DICOM"):
        send([*files, tmp_path / name], address)
    assert stored == []


@pytest.mark.slow
def test_a_series_goes_to_a_real_archive_and_comes_back_equal(phantom_folder, tmp_path):
    files = sorted((phantom_folder / "dicom").iterdir())
    sent = {image.SOPInstanceUID: image for image in map(dcmread, files)}
    study, series = (sent[next(iter(sent))][keyword].value for keyword in ("StudyInstanceUID", "SeriesInstanceUID"))
    with running_orthanc() as archive:
        for address in (archive.dicomweb, archive.dicom):
            send(files, address)
            folder = fetch_series(archive.dicomweb, study, series, tmp_path / address.partition(":")[0])
            archive.clear()
            back = {image.SOPInstanceUID: image for image in map(dcmread, folder.iterdir())}
            assert back == sent
            scan, true = read_ct(folder), read_ct(phantom_folder / "dicom")
            np.testing.assert_array_equal(scan.volume, true.volume)
            np.testing.assert_array_equal(scan.affine, true.affine)
        with pytest.raises(ExchangeError, match="has no such series"):
            fetch_series(archive.dicomweb, study, series, tmp_path / "again")
        stranger = archive.dicom.replace("COVID_MONAI@", "STRANGER@")
        with pytest.raises(ExchangeError, match="Calling AE title not recognised"):
            send(files, stranger)


@pytest.mark.slow
def test_segmentations_and_report_go_to_a_real_archive_and_come_back_equal(phantom_folder, tmp_path):
    from covid_monai.reports.dicom_seg import write_seg
    from covid_monai.reports.dicom_sr import write_sr
    from tests.reports.dicom_case import case_on

    scan, sources = read_ct(phantom_folder / "dicom"), read_sources(phantom_folder / "dicom")
    case = case_on(scan)
    segs = write_seg(case, sources, tmp_path)
    files = [*segs.values(), write_sr(case, sources, segs, tmp_path / "report.sr.dcm")]
    sent = {image.SOPInstanceUID: image for image in map(dcmread, files)}
    with running_orthanc() as archive:
        for address in (archive.dicomweb, archive.dicom):
            send(files, address)
            back = {image.SOPInstanceUID: image for image in archive.instances()}
            archive.clear()
            assert back == sent  # every element: codes, references, pixel data
            lesions = hd.seg.Segmentation.from_dataset(back[dcmread(segs["lesions"]).SOPInstanceUID])
            pixels = lesions.get_pixels_by_source_instance(
                [source.SOPInstanceUID for source in sources],
                combine_segments=True,
                assert_missing_frames_are_empty=True,
            )
            np.testing.assert_array_equal(pixels, scan.from_upright(case.lesions).T)
