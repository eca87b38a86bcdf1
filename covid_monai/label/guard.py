# SPDX-License-Identifier: Apache-2.0
"""What stands between the network and MONAI Label's routes, and how faults are told."""

from __future__ import annotations

import errno
import ipaddress
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from fastapi import FastAPI, Request
from monailabel.interfaces.exception import MONAILabelException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from covid_monai.label.faults import LabelError, archive_fault
from covid_monai.label.names import check_name, check_tag

__all__ = ["Guard", "tell_faults"]

CLOSED = (
    ("*", r"/session(/.*)?", "uploading of images"),
    ("PUT", r"/datastore/?|/datastore/image", "uploading of images"),
    ("DELETE", r"/datastore/?|/datastore/image", "deleting of images"),
    ("PUT", r"/model/.*", "uploading of models"),
    ("DELETE", r"/model/.*", "deleting of models"),
    ("*", r"/datastore/dataset/?", "downloading of the data set"),
    ("*", r"/infer/wsi.*", "inference on whole slides"),
    ("*", r"/logs(/.*)?", "reading of logs"),
    ("*", r"/reload/?", "reloading of the app"),
    ("*", r"/proxy/dicom/stow(/.*)?", "storing through the proxy"),
    ("POST", r"/proxy/.*", "sending through the proxy"),
)
"""Method, path and purpose of what is not offered: the routes by which files come onto the server under names that a
client chooses, and those that the pipeline has no use for."""
PROXIED = re.compile(r"/proxy/dicom/((wado|qido)/)?(studies|series|instances)(/[A-Za-z0-9.,_-]+)*/?")
"""What viewers ask an archive for; its other addresses, such as Orthanc's own, are not passed on."""
NAMES = {"image", "label", "id"}
TAGS = {"tag"}


class Guard:
    """Middleware that refuses requests before MONAI Label sees them.

    Refused are: routes of :data:`CLOSED`; a mask as a DICOM segmentation of MONAI Label's own, with its wrong codes;
    names and tags in the address that would leave their folder; paths through the proxy that are none of DICOMweb;
    requests under another name than those of this server, as a web page of somebody else makes them after having its
    name point here; and changes that a page of another server asks for.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on or answer it with a refusal."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            status, why = refusal
            await JSONResponse({"detail": why}, status)(scope, receive, send)
        else:
            await self.app(_with_query(scope), receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        if not self._known(headers.get("host", "")):
            return 421, "this server is called by another name: use the address that it printed when it started."
        origin = headers.get("origin")
        if origin and not self._known(urlsplit(origin).netloc):
            return 403, "a page of another server asks: open the viewer from the address of this one."
        path = unquote(scope["path"])
        for method, pattern, purpose in CLOSED:
            if method in ("*", scope["method"]) and re.fullmatch(pattern, path):
                return 403, f"{purpose} is not offered by this server, see docs/guide/label.md."
        if (path.startswith("/proxy/") and not PROXIED.fullmatch(path)) or "/.." in path or "\\" in path:
            return 403, "this address is not offered."
        try:
            for key, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
                if key in NAMES and value:
                    check_name(value)
                elif key in TAGS and value:
                    check_tag(value)
                elif key == "output" and value == "dicom_seg":  # MONAI Label writes one with codes of an organ
                    raise LabelError("a mask is not given as dicom_seg: save it as a label, which is sent as one.")
        except LabelError as error:
            return 400, str(error)
        return None

    def _known(self, netloc: str) -> bool:
        try:
            host = urlsplit(f"//{netloc}").hostname or ""
        except ValueError:
            return False
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def _with_query(scope: Scope) -> Scope:
    """MONAI Label's proxy passes on the path alone: what is asked for with it becomes a part of that.

    Not of one to metadata, which it tells by their end.
    """
    path = scope.get("path", "")
    if path.startswith("/proxy/") and not path.endswith("/metadata") and scope["query_string"]:
        return {**scope, "path": f"{path}?{scope['query_string'].decode('latin-1')}"}
    return scope


def tell_faults(app: FastAPI) -> None:
    """Answer what goes wrong with one line, and go on."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        if fault := archive_fault(error):
            return JSONResponse({"detail": fault}, 502)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return JSONResponse({"detail": "the disk is full: nothing was changed; make room and try again."}, 507)
        return JSONResponse({"detail": str(error)}, 500)

    async def malformed(request: Request, error: Exception) -> JSONResponse:
        """JSON of another kind than MONAI Label takes for granted, or a fault that nobody foresaw."""
        what = f"this cannot be done ({type(error).__name__}: {error})"
        return JSONResponse({"detail": f"{what}: give params and info as objects of JSON; else report it."}, 400)

    app.add_exception_handler(ValueError, refused)
    app.add_exception_handler(TypeError, malformed)
    app.add_exception_handler(AttributeError, malformed)
    app.add_exception_handler(MONAILabelException, refused)
    app.add_exception_handler(OSError, failed)
