# SPDX-License-Identifier: Apache-2.0
"""Versions of registered models: put in, listed, found by alias, and taken out again whole and unchanged."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from covid_monai import __version__
from covid_monai.networks import weights_sha256
from covid_monai.registry.contents import WEIGHTS, bundle_sha256, licence_of, model_name, whole_bundle
from covid_monai.registry.faults import RegistryError, answered
from covid_monai.registry.model_file import BUNDLE, NETWORK, write_model
from covid_monai.tracking import TrackedRun, lineage
from covid_monai.tracking.lineage import recorded_run
from covid_monai.training.experiments.files import locked
from covid_monai.whole_files import unfinished_folder

__all__ = ["CHALLENGER", "CHAMPION", "Registry", "Version", "default_tracking_uri"]

CHAMPION, CHALLENGER = "champion", "challenger"
ORIGIN = ("data_hash", "started_from_run", "started_from_sha256", "single_run", "single_sha256")
"""Tags of a training that its version takes over."""
SCHEME = "models:/"
PAGE = 200
UNAUTHENTICATED = 401  # of HTTP; what an account may not see and what is not there are both 403


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        name: of the model.
        number: of the version, from 1.
        aliases: names that point to it, such as ``champion``.
        tags: what is recorded of it.
        run_id: of the training, or of the registering where the training is not known.
    """

    name: str
    number: int
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None

    @property
    def uri(self) -> str:
        """Name by which MLflow and this package find it, which always means the same version."""
        return f"{SCHEME}{self.name}/{self.number}"

    @property
    def figures(self) -> dict[str, str]:
        """What was measured of it last, by the tags' names, which begin with the side of the split."""
        return {key: value for key, value in sorted(self.tags.items()) if "_val_" in key or key.endswith("_ml")}


def default_tracking_uri() -> str:
    """The store that the bundles record in: ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


class Registry:
    """The registered models of an MLflow store.

    Args:
        tracking_uri: where MLflow keeps them: a server, or a database such as ``sqlite:///mlflow.db``.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.tracking_uri = tracking_uri or default_tracking_uri()
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; a database that is not there is refused, as MLflow would make it.

        Raises:
            RegistryError: when there is no such database.
        """
        if self._client is None:
            if self._database is not None and not self._database.exists():
                raise RegistryError(
                    f"there is no MLflow store {self._database}: register a model first, or name another store."
                )
            self._client = MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)
        return self._client

    @property
    def _database(self) -> Path | None:
        """File of a local store; None for a server."""
        parsed = urlparse(self.tracking_uri)
        return Path(parsed.path.removeprefix("/")) if parsed.scheme == "sqlite" else None

    def register(self, bundle: Path, weights: Path | None = None, run_id: str | None = None) -> Version:
        """Register a bundle as the next version of the model that it is, and make that version the challenger.

        Args:
            bundle: folder of the bundle.
            weights: weights of a training of it; None: its own ``models/model.pt``.
            run_id: the training that made the weights; when None, the run that ``tracking.json`` beside the weights
                names, if this store knows it.

        Raises:
            RegistryError: when the run is not there or has not made these weights, or the bundle is not whole.
            ValueError: when the bundle or its weights cannot be used.
        """
        name = model_name(bundle)
        source = weights or bundle / WEIGHTS
        with tempfile.TemporaryDirectory(prefix="covid-monai-") as temporary:
            copy = Path(temporary, "bundle")
            segmenter = whole_bundle(bundle, weights, copy)
            facts = segmenter.facts
            if run_id is not None:
                self._check_run(run_id, facts.weights_sha256)
            elif self._database is None or self._database.exists():
                run_id = self._training(recorded_run(source.with_name("tracking.json"), facts.weights_sha256))
            tags = {
                "weights_sha256": facts.weights_sha256,
                "bundle_sha256": bundle_sha256(copy),
                "licence": licence_of(copy),
                "bundle_version": facts.version,
                "classes": ", ".join(segmenter.classes),
                "covid_monai": __version__,
            }

            def write(folder: Path, model: Model) -> dict[str, str]:
                return {**tags, "network_sha256": write_model(segmenter, copy, folder, model)}

            with self.alone(), answered(f"{name} cannot be registered"):
                if run_id is not None:
                    return self._add(name, run_id, write, Path(temporary, "model"))
                origin = {"stage": "registering", **lineage(source)}
                own = TrackedRun(self.tracking_uri, name, "registering", tags=origin)
                return own.execute(lambda: self._add(name, str(own.run_id), write, Path(temporary, "model")))

    def versions(self) -> list[Version]:
        """All versions of all models that were registered here, by name and number."""
        with answered(f"the models of {self.tracking_uri} cannot be listed"):
            aliases: dict[tuple[str, str], list[str]] = {}
            for model in _pages(lambda token: self.client.search_registered_models(max_results=PAGE, page_token=token)):
                for alias, number in self.client.get_registered_model(model.name).aliases.items():
                    aliases.setdefault((model.name, str(number)), []).append(alias)
            found = _pages(lambda token: self.client.search_model_versions(max_results=PAGE, page_token=token))
            ours = [each for each in found if "weights_sha256" in each.tags]
        versions = [_version(each, aliases.get((each.name, str(each.version)), ())) for each in ours]
        return sorted(versions, key=lambda version: (version.name, version.number))

    def find(self, uri: str, alias: str = CHAMPION) -> Version:
        """A version by ``models:/NAME@ALIAS``, ``models:/NAME/NUMBER``, or by a name alone and its alias.

        Raises:
            RegistryError: when the text is none of these, or there is no such version.
        """
        name, number, wanted = _parts(uri, alias)
        try:
            if number is None:
                number = int(self.client.get_model_version_by_alias(name, wanted).version)
            version = self.client.get_model_version(name, str(number))
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                with answered(f"{uri} cannot be found"):
                    raise
            what = f"no version {number}" if number is not None else f"no {wanted}"
            raise RegistryError(f"there is {what} of {name}: see `covid-monai model list`.") from error
        return _version(version, [each for each, of in aliases.items() if str(of) == str(number)])

    def champion(self, name: str) -> Version | None:
        """The champion of a model; None when there is none yet."""
        with answered(f"{name} cannot be found"):
            number = self.client.get_registered_model(name).aliases.get(CHAMPION)
        return None if number is None else self.find(f"{SCHEME}{name}/{number}")

    def point(self, alias: str, version: Version) -> None:
        """Let an alias name a version."""
        with answered(f"{alias} of {version.name} cannot be set"):
            self.client.set_registered_model_alias(version.name, alias, str(version.number))

    def unpoint(self, alias: str, version: Version) -> None:
        """Take an alias away from the model of a version."""
        with answered(f"{alias} of {version.name} cannot be taken away"):
            self.client.delete_registered_model_alias(version.name, alias)

    def tag(self, version: Version, tags: Mapping[str, Any]) -> None:
        """Record something of a version; None takes back what was recorded."""
        with answered(f"{version.uri} cannot be tagged"):
            there = self.client.get_model_version(version.name, str(version.number)).tags
            for key, value in tags.items():
                if value is not None:
                    self.client.set_model_version_tag(version.name, str(version.number), key, str(value))
                elif key in there:
                    self.client.delete_model_version_tag(version.name, str(version.number), key)

    def pull(self, version: Version, folder: Path) -> Path:
        """Write the bundle of a version into a new folder: whole, checked, and in need of no network.

        Raises:
            RegistryError: when the folder is there already, or a file is not the one that was registered.
        """
        if folder.exists():
            raise RegistryError(f"{folder} is there already: name a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_folder(folder.parent) as unfinished:
            bundle = self._download(version, BUNDLE, unfinished)
            _check(version, bundle / WEIGHTS, "weights_sha256")
            if bundle_sha256(bundle) != version.tags.get("bundle_sha256"):
                raise RegistryError(
                    f"a file of {version.uri} was changed beside its weights: register it again from its source."
                )
            return bundle.rename(folder)

    def pull_network(self, version: Version, folder: Path) -> Path:
        """Write the exported network of a version, checked, somewhere below a folder.

        Raises:
            RegistryError: when it is not the one that was registered.
        """
        return _check(version, self._download(version, NETWORK, folder), "network_sha256")

    def alone(self) -> AbstractContextManager[None]:
        """Let other processes that register or promote in the same local store wait; a server is held by nobody.

        Two processes break a local store when both make it, and MLflow sets an alias whatever it has become meanwhile.
        """
        if self._database is None:
            return nullcontext()
        folder = self._database.resolve().parent
        folder.mkdir(parents=True, exist_ok=True)
        return locked(folder)

    def _check_run(self, run_id: str, sha256: str) -> None:
        try:
            made = self.client.get_run(run_id).data.tags.get("weights_sha256")
        except MlflowException as error:
            if error.get_http_status_code() == UNAUTHENTICATED:
                with answered(f"run {run_id} cannot be found"):
                    raise
            raise RegistryError(
                f"{run_id} is neither a bundle's folder nor a run of {self.tracking_uri}: name one of them."
            ) from error
        if made != sha256:
            raise RegistryError(
                f"run {run_id} made weights {(made or 'none')[:12]}, not these of {sha256[:12]}: name its own weights."
            )

    def _training(self, run_id: str | None) -> str | None:
        """The run, when this store knows it."""
        try:
            return None if run_id is None else self.client.get_run(run_id).info.run_id
        except MlflowException:
            return None

    def _add(self, name: str, run_id: str, write: Callable[[Path, Model], dict[str, str]], folder: Path) -> Version:
        """Write, upload and register a model under a run; a model that is not whole is marked as failed."""
        run = self.client.get_run(run_id)
        logged = self.client.create_logged_model(run.info.experiment_id, name, run_id)
        state = LoggedModelStatus.FAILED
        try:
            tags = {**_origin(run), **write(folder, Model(run_id=run_id, model_id=logged.model_id))}
            self.client.log_model_artifacts(logged.model_id, str(folder))
            self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
            state = LoggedModelStatus.READY
        finally:
            self.client.finalize_logged_model(logged.model_id, state)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self.client.create_model_version(  # models:/ID as source would be sought in MLflow's global store
            name, logged.artifact_location, run_id, tags, model_id=logged.model_id
        )
        version = _version(made)
        self.point(CHALLENGER, version)
        return self.find(version.uri)

    def _download(self, version: Version, path: str, folder: Path) -> Path:
        with answered(f"{version.uri} cannot be fetched"):
            root = self.client.get_model_version_download_uri(version.name, str(version.number))
            found = download_artifacts(
                artifact_uri=f"{root.rstrip('/')}/{path}", dst_path=str(folder), tracking_uri=self.tracking_uri
            )
        return Path(found)


def _parts(uri: str, alias: str) -> tuple[str, int | None, str]:
    """Name, number and alias that a text asks for."""
    name = re.fullmatch(rf"(?:{SCHEME})?([^/@:\s]+)(?:/(\d+)|@([\w-]+))?", uri)
    if name is None:
        raise RegistryError(f"{uri} names no model: write {SCHEME}NAME@{alias}, {SCHEME}NAME/NUMBER, or NAME.")
    return name[1], None if name[2] is None else int(name[2]), name[3] or alias


def _version(found: ModelVersion, aliases: Any = ()) -> Version:
    return Version(found.name, int(found.version), tuple(sorted(aliases)), dict(found.tags), found.run_id)


def _origin(run: Run) -> dict[str, str]:
    return {key: run.data.tags[key] for key in ORIGIN if key in run.data.tags}


def _check(version: Version, path: Path, tag: str) -> Path:
    """Refuse a file whose SHA-256 is not the one that was registered."""
    recorded, found = version.tags.get(tag, ""), weights_sha256(path)
    if found != recorded:
        raise RegistryError(
            f"{path.name} of {version.uri} was changed: its SHA-256 is {found[:12]}…, the registry says "
            f"{recorded[:12]}…; register it again from its source."
        )
    return path


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    """Everything that is given page by page."""
    token = None
    while True:
        page = ask(token)
        yield from page
        if not (token := page.token):
            return


@contextmanager
def pulled(uri: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """The bundle of a version in a folder that is deleted afterwards."""
    registry = Registry(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="covid-monai-") as temporary:
        yield registry.pull(registry.find(uri), Path(temporary, "bundle"))
