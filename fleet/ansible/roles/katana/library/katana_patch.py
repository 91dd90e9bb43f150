#!/usr/bin/python
"""Ansible module: bring the processes of a host to the newest patches of a mirror, by `katana update`."""

from __future__ import annotations

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: katana_patch
short_description: Patch running processes from a mirror of patches
description:
  - Finds what is newest for the builds that run on a host, and applies it without a restart, with C(katana update).
  - Running it again changes nothing.  In check mode everything is found and checked, and nothing is stopped.
options:
  urls:
    description: Mirrors of patches. They are asked in this order.
    type: list
    elements: str
    required: true
  pids: {description: Patch these processes., type: list, elements: int}
  tree: {description: Patch this process and all its descendants., type: int}
  require_signature: {description: Refuse what no trusted key signed., type: bool, default: true}
  trusted: {description: Folders of trusted public keys on the host., type: list, elements: path, default: []}
  allow_active: {description: Functions that may go on in their old code., type: list, elements: str, default: []}
  arguments: {description: More options of C(katana update)., type: list, elements: str, default: []}
  wait: {description: Seconds to wait for a safe moment., type: float, default: 5}
  executable: {description: The katana command., type: str, default: katana}
"""
RETURN = r"""
builds: {description: What came of each build for which there is a patch., type: list}
applied: {description: "Processes that were patched now; in check mode, that would be.", type: list}
already: {description: Processes that carried the newest patch already., type: list}
"""
NOW = ("applied", "would apply")


def command(parameters: dict[str, Any], *, is_check: bool) -> list[str]:
    """The words of the command."""
    words = [parameters["executable"], "update", "--json", "--wait", str(parameters["wait"])]
    if parameters["pids"]:
        words += ["--pid", *(str(pid) for pid in parameters["pids"])]
    else:
        words += ["--all"] if parameters["tree"] is None else ["--tree", str(parameters["tree"])]
    for option, values in (("url", "urls"), ("trusted", "trusted"), ("allow-active", "allow_active")):
        words += [word for value in parameters[values] for word in (f"--{option}", value)]
    words += ["--require-signature"] if parameters["require_signature"] else []
    return [*words, *(["--dry-run"] if is_check else []), *parameters["arguments"]]


def main() -> None:
    """Entry point of the module."""
    strings = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "urls": {"type": "list", "elements": "str", "required": True},
            "pids": {"type": "list", "elements": "int"},
            "tree": {"type": "int"},
            "require_signature": {"type": "bool", "default": True},
            "trusted": {"type": "list", "elements": "path", "default": []},
            "allow_active": strings,
            "arguments": strings,
            "wait": {"type": "float", "default": 5.0},
            "executable": {"type": "str", "default": "katana"},
        },
        mutually_exclusive=[["pids", "tree"]],
        supports_check_mode=True,
    )
    status, output, errors = module.run_command(command(module.params, is_check=module.check_mode))
    try:
        told = json.loads(output)
    except ValueError:
        told = {}
    builds = told.get("builds", [])
    processes = [p for build in builds for p in build["processes"]]
    applied = [p["pid"] for p in processes if p["outcome"] in NOW]
    already = [p["pid"] for p in processes if p["outcome"] == "already applied"]
    has_changed = bool(applied) or any(p["outcome"] == "stuck" for p in processes)
    result = {"builds": builds, "applied": applied, "already": already, "status": status, "stderr": errors}
    if status:
        module.fail_json(msg=errors.strip() or f"katana update ended with {status}", changed=has_changed, **result)
    module.exit_json(changed=has_changed, **result)


if __name__ == "__main__":
    main()
