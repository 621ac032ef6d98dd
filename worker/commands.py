"""What is started for a stage: the module, its folder, its environment, and whether it has a network."""

from __future__ import annotations

from app.settings import Settings
from worker import environment
from worker.child import Command, Network
from worker.isolation import isolation
from worker.workfolder import JobFolder


def moving(settings: Settings, module: str, folder: JobFolder) -> Command:
    """Return the command of a child that moves files: storage and hub in its environment, and a network."""
    return Command(module, [str(folder.path)], environment.online(settings, folder), folder.path, folder.log)


def pushing(settings: Settings, folder: JobFolder) -> Command:
    """Return the command of the child that takes a result to the hub; it is told the token."""
    env = environment.pushing(settings, folder)
    return Command("worker.pusher", [str(folder.path)], env, folder.path, folder.log, told=True)


def computing(settings: Settings, module: str, folder: JobFolder, *, told: bool = False) -> Command:
    """Return the command of a child that computes, without a network; `told`: what on, comes by standard input."""
    network: Network = "none" if isolation() == "namespace" else "shared"
    args = [] if told else [str(folder.path)]
    env = environment.offline(settings, folder)
    return Command(module, args, env, folder.path, folder.log, network=network, told=told)
