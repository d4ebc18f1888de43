"""Clients of the load test, as locust runs them: each asks again as soon as it is answered."""

import json
import os
import random
from pathlib import Path

from locust import FastHttpUser, task

CATALOGUE = Path(os.environ["TTDS_CATALOGUE"]).read_text("utf-8").splitlines()
ITEMS = [json.loads(line)["item_id"] for line in CATALOGUE]
LONGEST = 20


class Client(FastHttpUser):
    """One client; its histories are drawn anew for each request."""

    @task
    def recommend(self) -> None:
        """Ask for a list; anything but ten different items that were not seen is an error."""
        history = random.sample(ITEMS, random.randint(0, LONGEST))
        with self.client.post(
            "/recommend", json={"history": history}, catch_response=True
        ) as answer:
            found = {entry["item_id"] for entry in answer.json()} if answer.ok else set()
            if len(found - set(history)) != 10:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
