# SPDX-License-Identifier: Apache-2.0
"""OHIF with what MONAI Label's build of it lacks: brushes, and a button that submits the corrected label."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from monailabel.endpoints import ohif
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["complete_ohif"]

CONFIGURATION = "app-config.js"
OWN = Path(__file__).with_name("ohif.js")


def complete_ohif(app: FastAPI) -> None:
    """Serve OHIF's configuration with ours behind it, in place of MONAI Label's alone.

    Args:
        app: MONAI Label.

    Raises:
        OSError: the configuration is not where MONAI Label 0.8.5 has it.
    """
    given = Path(ohif.__file__).parent / "static" / "ohif" / CONFIGURATION
    content = "\n".join(path.read_text(encoding="utf-8") for path in (given, OWN))

    async def configuration(request: Request) -> Response:
        return Response(content, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    app.router.routes.insert(0, Route(f"/ohif/{CONFIGURATION}", configuration))  # before the one of all its files
