"""HR, NDCG and MRR of ranked lists as a module of the library `evaluate`.

`evaluate.load("recipes/evaluation/ranking_metrics.py")`, then
`.compute(predictions=[[3, 1]], references=[1])`. No script imports this file: beside a script named
`evaluate.py` the library cannot be imported.
"""

from collections.abc import Sequence

import datasets
import evaluate

from recipes.evaluation.metrics import rank_metrics


class RankingMetrics(evaluate.Metric):
    """HR, NDCG and MRR of ranked lists against one relevant item each."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self, predictions: Sequence[Sequence[int]], references: Sequence[int]
    ) -> dict[str, float]:
        return rank_metrics(predictions, references)
