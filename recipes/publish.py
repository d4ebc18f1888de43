"""Publish a model folder on the Hub, and a Space that shows it.

python recipes/publish.py outputs/demo --repo_id org/name --dry_run
python recipes/publish.py outputs/demo --repo_id org/name --space org/name-demo
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from recipes import hub  # noqa: E402


def main() -> None:
    """List what would be sent, then send it, one commit per repository."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what recipes/sft.py wrote")
    parser.add_argument("--repo_id", required=True, help="OWNER/NAME of the model")
    parser.add_argument("--space", help="OWNER/NAME of a Space that shows the model")
    parser.add_argument("--private", action="store_true", help="only the owner sees it")
    parser.add_argument("--dry_run", action="store_true", help="list the files, send nothing")
    parser.add_argument(
        "--include_user_index", action="store_true", help="send run.jsonl, which holds user ids"
    )
    parser.add_argument(
        "--allow_rare_pairs",
        action="store_true",
        help="send a memory of pairs of items behind which a single user stands",
    )
    arguments = parser.parse_args()
    private = arguments.private or None
    try:
        model = hub.Destination(arguments.repo_id, private=private)
        files = hub.model_files(
            arguments.folder,
            arguments.repo_id,
            arguments.include_user_index,
            arguments.allow_rare_pairs,
        )
        parcels = [(model, files)]
        if arguments.space:
            variables = {"TTDS_MODEL": arguments.repo_id}
            space = hub.Destination(arguments.space, "space", private, variables=variables)
            parcels.append((space, hub.space_files(arguments.repo_id)))
        for destination, parcel in parcels:
            print(hub.listing(destination, parcel))
        if arguments.dry_run:
            print("Nothing was sent.")
            return
        for destination, parcel in parcels:
            print(f"Published: {destination.send(parcel)}")
        if arguments.space and arguments.private:
            print(
                f"{arguments.space} cannot read the private model yet: in the Space's settings, "
                f"add a secret HF_TOKEN, a token that may read {arguments.repo_id}."
            )
    except hub.PublishError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
