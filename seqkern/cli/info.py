# SPDX-License-Identifier: Apache-2.0
"""`seqkern info`: what this machine has, and why something is missing."""

import json
from typing import Any

import click

from seqkern._runtime import environment


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show versions, instruction sets and backends of this machine.

    Works also when torch or the compiled library is missing or broken; paste the output into a
    report of a problem.
    """
    report = environment.report()
    click.echo(json.dumps(report, indent=1) if as_json else render(report))


def render(report: dict[str, Any]) -> str:
    """Lay the report of `environment.report` out as text."""
    cpu = report["cpu"]
    lines = [
        f"seqkern     {report['seqkern']}",
        f"python      {report['python']} on {report['platform']}",
        *_packages(report["packages"]),
        f"cpu         {cpu['model']}, {cpu['cores']} cores",
        f"flags       {' '.join(cpu['flags']) or 'unknown'}",
        f"threads     {_or_unknown(report['threads'])}",
        *_isa(report["isa"]),
        f"library     {_or_unknown(report['library']['path'])}",
        "backends",
    ]
    for name, state in report["backends"].items():
        lines.append(f"  {name:<10}{'available' if state['available'] else state['reason']}")
    lines.append(f"constrint   {_solver(report['constrint'])}")
    lines.append("settings")
    for name, setting in report["settings"].items():
        value = setting["value"]
        shown = f"{value} (set)" if value else setting["default"] or "(not set)"
        lines.append(f"  {name:<18}{shown}")
    if not report["library"]["loaded"]:
        lines += ["", "The slow reference serves every call. To get the compiled kernels,"]
        if report["settings"]["SEQKERN_LIBRARY"]["value"]:
            lines += ["correct SEQKERN_LIBRARY, or unset it to use those of the package."]
        else:
            lines += ["install again with a C++ compiler present:"]
            lines += ["pip install --force-reinstall --no-deps ."]
    return "\n".join(lines)


def _packages(packages: dict[str, str | None]) -> list[str]:
    have = [f"{name} {version}" for name, version in packages.items() if version]
    missing = [name for name, version in packages.items() if not version]
    lines = [f"packages    {', '.join(have) or 'none'}"]
    if missing:
        lines.append(f"not there   {', '.join(missing)}")
    return lines


def _isa(isa: dict[str, Any] | None) -> list[str]:
    if isa is None:
        return ["isa         unknown without the compiled library"]
    return [
        f"isa         {isa['in_use']} in use, {isa['found']} is the best one found",
        f"compiled    {', '.join(isa['compiled'])}",
    ]


def _solver(state: dict[str, Any]) -> str:
    names = {"cpp": "C++ core", "python": "Python twin", None: "not usable"}
    why = f" ({state['reason']})" if state["reason"] else ""
    return names[state["engine"]] + why


def _or_unknown(value: Any) -> str:
    return "unknown" if value is None else str(value)
