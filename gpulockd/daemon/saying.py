"""What the pool's clients go by, as the daemon that offers the pool says it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gpulockd.client.session import Session
from gpulockd.ledger import answers as a
from gpulockd.ledger import publishing
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import Call

OfferAnswer = a.Offered | a.Elsewhere | a.NoSession | a.Unopened | a.AskFleet
PublishAnswer = publishing.Published | publishing.Superseded | publishing.NotOffered | a.NoSession | a.Unopened


class PoolDefaults:
    """What the pool's clients go by, as the daemon says it with each offer, and at once when it changes.

    `version` is None until the first offer stands. What is sent goes one after the other, so that no offer under way
    brings back what was said before.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.version: int | None = None
        self.one_by_one = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<PoolDefaults version {self.version}>"

    def change(self, tree: dict[str, Any]) -> None:
        """Say this from now on."""
        if tree != self.tree:
            self.tree = tree
            if self.version is not None:
                self.version += 1

    async def offer(self, session: Session, store: Store, call: Callable[..., Call[OfferAnswer]]) -> OfferAnswer:
        """Send the offer that `call` makes, with what the pool's clients go by.

        :param call: takes `defaults` and `version`
        :raises StoreUnavailable: if the store does not answer
        """
        async with self.one_by_one:
            version = self.version
            answer = await store.ask(call(defaults=self.tree, version=version))
            if isinstance(answer, a.Offered):
                self.version = answer.clock.version
        if isinstance(answer, a.Offered) and version not in (None, self.version):
            await self.publish(session, store)
        return answer

    async def publish(
        self, session: Session, store: Store, event: tuple[publishing.Told, str] | None = None
    ) -> PublishAnswer:
        """Say it at once, under a version above the pool's.

        :param event: the event that tells of it, and its reason
        :raises StoreUnavailable: if the store does not answer
        """
        kind, reason = event or (None, "")
        async with self.one_by_one:
            while True:
                call = publishing.publish(
                    session.keys,
                    session=session.id,
                    version=self.version or 0,
                    defaults=self.tree,
                    kind=kind,
                    facts={"reason": reason},
                )
                answer = await store.ask(call)
                if not isinstance(answer, publishing.Superseded):
                    return answer
                self.version = answer.version + 1
