"""As much of Kustomize as the overlays use, so that they are checked on every machine.

Where Kustomize itself is there, `test_kubernetes.py` compares the two.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]
#: Lists of these are merged item by item, by this key; all others are replaced.
_KEYS = {
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
}


def build(folder: Path) -> list[Resource]:
    """Render a folder with a ``kustomization.yaml``."""
    about = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(about) - {
        *("apiVersion", "kind", "namespace", "labels", "resources", "configMapGenerator"),
        *("images", "patches"),
    }
    assert not unknown, f"{folder} uses {unknown}, which this renderer does not know"
    found: list[Resource] = []
    for name in about.get("resources", []):
        path = folder / name
        found += build(path) if path.is_dir() else _documents(path)
    _generate(found, about.get("configMapGenerator", []), folder)
    for patch in about.get("patches", []):
        for change in _documents(folder / patch["path"]):
            _merge(_find(found, change), change)
    for image in about.get("images", []):
        _rename_image(found, image)
    for label in about.get("labels", []):
        assert label["includeSelectors"]
        for resource in found:
            _label(resource, label["pairs"])
    for resource in found:
        if "namespace" in about and resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = about["namespace"]
    return found


def _documents(path: Path) -> list[Resource]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def _find(resources: list[Resource], like: Resource) -> Resource:
    (found,) = [
        resource
        for resource in resources
        if (resource["kind"], resource["metadata"]["name"])
        == (like["kind"], like["metadata"]["name"])
    ]
    return found


def _generate(resources: list[Resource], generators: list[dict[str, Any]], folder: Path) -> None:
    for generator in generators:
        data = dict(line.split("=", 1) for line in generator.get("literals", []))
        for line in generator.get("files", []):
            key, _, name = line.partition("=")
            data[key] = (folder / name).read_text()
        resource = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": generator["name"]},
            "data": data,
        }
        if generator.get("behavior") == "merge":
            _find(resources, resource)["data"].update(data)
        else:
            resources.append(resource)


def _merge(into: Any, change: Any) -> None:
    """Strategic merge: maps by key, some lists by an item's name; the rest is replaced."""
    for key, value in change.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif key in _KEYS and isinstance(into.get(key), list):
            known = {item[_KEYS[key]]: item for item in into[key]}
            added = []
            for item in value:
                if item[_KEYS[key]] in known:
                    _merge(known[item[_KEYS[key]]], item)
                else:
                    added.append(item)
            # As Kustomize does it: what is new comes first.
            into[key] = added + into[key]
        else:
            into[key] = copy.deepcopy(value)


def _rename_image(resources: list[Resource], image: dict[str, str]) -> None:
    for resource in resources:
        template = resource.get("spec", {}).get("template", {})
        for container in template.get("spec", {}).get("containers", []):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def _label(resource: Resource, pairs: dict[str, str]) -> None:
    resource["metadata"].setdefault("labels", {}).update(pairs)
    spec = resource.get("spec", {})
    if resource["kind"] == "Service":
        spec.setdefault("selector", {}).update(pairs)
    if resource["kind"] == "NetworkPolicy":
        _label_selector(spec["podSelector"], pairs)
        for rule in spec.get("ingress", []) + spec.get("egress", []):
            for peer in rule.get("from", []) + rule.get("to", []):
                if "podSelector" in peer:
                    _label_selector(peer["podSelector"], pairs)
    if "template" in spec:
        spec["selector"]["matchLabels"].update(pairs)
        spec["template"]["metadata"].setdefault("labels", {}).update(pairs)
        for kind in spec["template"]["spec"].get("affinity", {}).values():
            for rules in kind.values():
                for rule in rules:
                    term = rule.get("podAffinityTerm", rule)
                    _label_selector(term["labelSelector"], pairs)


def _label_selector(selector: dict[str, Any], pairs: dict[str, str]) -> None:
    if selector:  # an empty one means everything, and stays so
        selector["matchLabels"].update(pairs)
