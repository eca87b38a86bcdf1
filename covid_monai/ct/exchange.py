# SPDX-License-Identifier: Apache-2.0
"""DICOM from and to an archive: fetch a series by WADO-RS, send files by STOW-RS or C-STORE."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.status import code_to_category

__all__ = ["ExchangeError", "UnencryptedWarning", "check_address", "connect", "fetch_series", "send"]

USER, PASSWORD = "COVID_MONAI_DICOMWEB_USER", "COVID_MONAI_DICOMWEB_PASSWORD"
"""Environment variables with the credentials of a DICOMweb server; without them ``~/.netrc`` is looked up."""
CALLING = "COVID_MONAI"
"""AE title by which files are sent when the address gives none."""
TIMEOUT = 10.0, 60.0
"""Seconds to wait for a connection, and for each answer."""

_ADDRESSES = "http(s)://HOST[:PORT]/PATH (DICOMweb) or dicom://[CALLING@]CALLED@HOST:PORT (C-STORE)"
_UID = re.compile(r"(?=.{1,64}\Z)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*")
_AE_TITLE = re.compile(r"(?=.*[^ ])[ -\[\]-~]{1,16}")

Progress = Callable[[int, int | None], Any]


class ExchangeError(ValueError):
    """A DICOM server cannot be reached, refuses what is asked, or an address is wrong."""


class UnencryptedWarning(UserWarning):
    """Patient data, and a password if there is one, go unencrypted to another machine."""


def connect(url: str) -> DICOMwebClient:
    """Client of a DICOMweb service, with limits of time and the credentials that :func:`fetch_series` uses.

    Raises:
        ExchangeError: a wrong address, or half of the credentials.
    """
    return _client(_parse(url))


def fetch_series(
    url: str, study: str, series: str, folder: str | os.PathLike, progress: Progress | None = None
) -> Path:
    """Fetch all instances of a series by WADO-RS, as the server stores them.

    Credentials come from the environment variables :data:`USER` and :data:`PASSWORD`, else from ``~/.netrc``.

    Args:
        url: root of the DICOMweb service.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        folder: new or empty; it is there when all instances are, and not before.
        progress: called after each instance with the number fetched and that of all, or None where the server does not
            say.

    Returns:
        ``folder``.

    Raises:
        ExchangeError: a wrong address or UID, an unreachable server, no such series, a refusal, or fewer instances
            than the server says it has.
        ValueError: ``folder`` holds anything already.
    """
    for name, uid in (("study", study), ("series", series)):
        if not _UID.fullmatch(uid):
            raise ExchangeError(f"{uid!r} is no UID of a {name}: give its {name.capitalize()}InstanceUID.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder: a series needs one of its own.")
    parts = _parse(url)
    client = _client(parts)
    _warn_unencrypted(parts)
    with _told(url):
        matches = client.search_for_series(study, search_filters={"SeriesInstanceUID": series})
        found = [match for match in map(Dataset.from_json, matches) if match.get("SeriesInstanceUID") == series]
    if not found:
        raise ExchangeError(f"{url} has no such series: check the UIDs of the study and of the series.")
    total = found[0].get("NumberOfSeriesRelatedInstances")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        instances = set()
        with _told(url):
            for number, image in enumerate(client.iter_series(study, series, (("application/dicom", "*"),)), start=1):
                if "SeriesInstanceUID" not in image:
                    raise ExchangeError(f"{url} broke off within an instance: nothing is kept; fetch it again.")
                if image.SeriesInstanceUID != series:
                    raise ExchangeError(f"{url} sent an instance of another series: nothing is kept.")
                image.save_as(temporary / f"{number:05}.dcm", enforce_file_format=True)
                instances.add(image.SOPInstanceUID)
                if progress:
                    progress(number, total)
        if len(instances) < (total or 1):
            raise ExchangeError(
                f"{url} sent {len(instances)} of {total or 'its'} instances of the series: "
                "nothing is kept; fetch it again."
            )
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        return temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def send(files: Sequence[str | os.PathLike], address: str, progress: Progress | None = None) -> None:
    """Send DICOM files to an archive, one after the other.

    What is refused does not keep the others from being sent; the error then says how many were. Credentials of a
    DICOMweb server come from the environment variables :data:`USER` and :data:`PASSWORD`, else from ``~/.netrc``.

    Args:
        files: DICOM files.
        address: ``http(s)://HOST[:PORT]/PATH``, the root of a DICOMweb service (STOW-RS), or
            ``dicom://[CALLING@]CALLED@HOST:PORT`` (C-STORE) with the AE titles of sender (default :data:`CALLING`) and
            receiver.
        progress: called after each file that was stored with the number stored and that of all.

    Raises:
        ExchangeError: a wrong address, a file that is no DICOM, an unreachable server, a refused association, or files
            that were refused.
    """
    paths = [Path(file) for file in files]
    for path in paths:
        _read(path, stop_before_pixels=True)
    parts = _parse(address)
    _warn_unencrypted(parts)
    results = _c_store(paths, parts, address) if parts.scheme == "dicom" else _stow(paths, parts, address)
    stored = 0
    refused = []
    try:
        for path, why in zip(paths, results, strict=True):
            if why is None:
                stored += 1
                if progress:
                    progress(stored, len(paths))
            else:
                refused.append(f"{path.name} ({why})")
    except ExchangeError as error:
        if not stored:
            raise
        raise ExchangeError(f"{stored} of {len(paths)} files were sent, then: {error}") from error
    if refused:
        raise ExchangeError(f"{address} refused {'; '.join(refused)}: {stored} of {len(paths)} files were sent.")


def check_address(address: str) -> None:
    """Refuse an address to which :py:func:`send` cannot send, before the work is done; nothing is asked of the server.

    Raises:
        ExchangeError: it is none, or holds credentials.
    """
    _parse(address)


def _parse(address: str) -> SplitResult:
    """Parts of an address; it is named in errors only where it holds no password."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ExchangeError(f"The address of the DICOM server is not understood: give {_ADDRESSES}.") from None
    if parts.scheme != "dicom" and parts.username is not None:
        raise ExchangeError(
            f"The address {parts.scheme}://…@{host} holds credentials, which others can see: leave them out and set "
            f"{USER} and {PASSWORD}, or use ~/.netrc."
        )
    if parts.scheme not in ("http", "https", "dicom") or not host or parts.query or parts.fragment:
        raise ExchangeError(f"{address!r} is no address of a DICOM server: give {_ADDRESSES}.")
    if parts.scheme == "dicom":
        titles = parts.netloc.split("@")[:-1]
        good = 1 <= len(titles) <= 2 and all(_AE_TITLE.fullmatch(title) for title in titles)
        if not good or port is None or parts.path not in ("", "/"):
            raise ExchangeError(
                f"{address!r} is no address of a DICOM server: give dicom://[CALLING@]CALLED@HOST:PORT with AE titles "
                "of 1 to 16 characters."
            )
    return parts


def _warn_unencrypted(parts: SplitResult) -> None:
    if parts.scheme != "https" and not _loopback(str(parts.hostname)):
        warnings.warn(
            f"Patient data go to {parts.hostname} unencrypted ({parts.scheme}): use https:// unless the network is "
            "trusted.",
            UnencryptedWarning,
            stacklevel=3,
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(file: Path, **options: Any) -> Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's complaints about odd values print them
            return dcmread(file, **options)
    except Exception as error:  # pydicom raises what the damaged bytes lead it to
        raise ExchangeError(f"{file.name} is missing or no DICOM file, nothing can be sent of it.") from error


def _client(parts: SplitResult) -> DICOMwebClient:
    if parts.scheme == "dicom":
        raise ExchangeError("A series is fetched by DICOMweb, not by dicom://: give http(s)://HOST[:PORT]/PATH.")
    session = requests.Session()
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if (user is None) != (password is None):
        raise ExchangeError(f"Only one of {USER} and {PASSWORD} is set: set both, or none to use ~/.netrc.")
    if user is not None and password is not None:
        session.auth = (user, password)
    headers = {"Accept": "application/dicom+json"}  # the answer to a STOW-RS; fetching asks for what it wants
    try:
        client = DICOMwebClient(parts.geturl().rstrip("/"), session=session, headers=headers, timeout=TIMEOUT)
    except ValueError:
        raise ExchangeError(f"{parts.geturl()!r} is no address of a DICOM server: give {_ADDRESSES}.") from None
    client.set_http_retry_params(retry=False)
    return client


class _Refused(ExchangeError):
    """An answer that refuses this request, after which others may still be tried."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{url} answered with HTTP status {status}: check the address, or ask who runs the server.")
        self.status = status


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What goes wrong with a DICOMweb server, in one line."""
    try:
        yield
    except ExchangeError:
        raise
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status in (401, 403):
            raise ExchangeError(
                f"{url} refuses access (HTTP status {status}): set {USER} and {PASSWORD}, or check them."
            ) from None
        raise _Refused(url, status) from None
    except requests.exceptions.SSLError:
        raise ExchangeError(f"{url} has no certificate that is trusted: nothing was exchanged.") from None
    except requests.exceptions.InvalidJSONError:
        raise ExchangeError(f"{url} gives an answer that is no DICOMweb (no JSON): check the address.") from None
    except requests.RequestException as error:
        raise ExchangeError(
            f"{url} cannot be reached or broke off ({type(error).__name__}): check the address, and the server."
        ) from None
    except (ValueError, InvalidDicomError) as error:
        raise ExchangeError(f"{url} gives an answer that is no DICOMweb ({error}): check the address.") from error


def _stow(paths: Sequence[Path], parts: SplitResult, address: str) -> Iterator[str | None]:
    """For each file None when it was stored, else why not; ExchangeError where going on is of no use."""
    client = _client(parts)
    for path in paths:
        try:
            with _told(address):
                failed = client.store_instances([_read(path)]).get("FailedSOPSequence")
        except _Refused as error:
            yield f"HTTP status {error.status}"
        else:
            yield f"failure reason {failed[0].get('FailureReason')}" if failed else None


def _c_store(paths: Sequence[Path], parts: SplitResult, address: str) -> Iterator[str | None]:
    """As :py:func:`_stow`, over one association."""
    *calling, called = parts.netloc.split("@")[:-1]
    entity = AE(ae_title=calling[0] if calling else CALLING)
    entity.connection_timeout, entity.network_timeout = TIMEOUT
    entity.acse_timeout = entity.dimse_timeout = TIMEOUT[1]
    for context in dict.fromkeys(_context(path) for path in paths):
        entity.add_requested_context(*context)
    association = _associate(entity, parts, called, address)
    try:
        for path in paths:
            try:
                status = association.send_c_store(_read(path)).get("Status")
            except ValueError:  # no accepted context for its class and transfer syntax
                yield "this kind of object or its transfer syntax is not accepted"
                continue
            except RuntimeError:  # the association ended meanwhile
                status = None
            if status is None:
                raise ExchangeError(f"{address} broke off the association or did not answer in time: send again.")
            kind = code_to_category(status)
            yield None if kind in ("Success", "Warning") else f"C-STORE status {status:#06x}, {kind}"
    finally:
        if association.is_established:
            association.release()


def _context(path: Path) -> tuple[str, str]:
    """SOP class and transfer syntax of a file."""
    header = _read(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return header.SOPClassUID, header.file_meta.TransferSyntaxUID


def _associate(entity: AE, parts: SplitResult, called: str, address: str) -> Association:
    connected: list[evt.Event] = []
    try:
        association = entity.associate(
            str(parts.hostname),
            int(parts.port or 0),
            ae_title=called,
            evt_handlers=[(evt.EVT_CONN_OPEN, connected.append)],
        )
    except OSError:  # a name that is not known
        connected.clear()
    if not connected:
        raise ExchangeError(f"{address} cannot be reached: check host and port, and that the server runs.")
    if association.is_established:
        return association
    if association.is_rejected:
        answer = association.acceptor.primitive
        why = answer.reason_str if answer else "no reason given"
        raise ExchangeError(
            f"{address} refused the association: {why}. Ask who runs the server to know the AE titles "
            f"{entity.ae_title} (calling) and {called} (called)."
        )
    raise ExchangeError(
        f"{address} ended the association, or accepts none of the kinds of objects: check that it is a DICOM archive."
    )
