"""A training process that stays: what is left of a wait for it that is given up."""

import asyncio

from silo_agent.runners.trainer import Trainer


async def test_a_wait_that_is_given_up_leaves_no_task_behind() -> None:
    """Such a task is destroyed some time later, and asyncio logs that as an error."""
    trainer = object.__new__(Trainer)
    trainer._changed = asyncio.Event()
    exited = asyncio.create_task(asyncio.Event().wait())
    waiting = asyncio.create_task(trainer._until(lambda: False, exited))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - {asyncio.current_task()} == {exited}
    exited.cancel()
