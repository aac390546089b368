"""Yesterday's value, going on where one was, and what happens when the past is gone.

python examples/history.py
"""

import logging

import structlog
import trio

from replikv import Cluster, CompactedError, Settings


async def main() -> None:
    # The defaults keep 10,000 revisions, for a day at most.
    settings = Settings(history_revisions=1000, history_age_s=3600.0)
    async with Cluster("a", settings=settings) as cluster:
        prices = cluster.store.scoped("prices/")
        monday = await prices.put("tea", 3)
        await prices.update({"tea": 4, "coffee": 5})
        friday = await prices.put("coffee", 6)
        print(f"tea was {await prices.get('tea', revision=monday)}, and is {prices['tea']}")

        bookmark = monday  # whoever watches remembers up to where he has seen everything
        async with prices.watch(since=bookmark) as changes:
            while bookmark < friday:
                change = await anext(changes)
                print(f"missed: {change.key} went from {change.previous} to {change.value}")
                bookmark = change.revision

        print(f"the history begins at revision {await prices.compact(friday)}")
        try:
            await prices.get("tea", revision=monday)
        except CompactedError as exc:
            print(f"CompactedError: {exc}")
        print(f"and today is as it was: {dict(prices.items())}")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    trio.run(main)
