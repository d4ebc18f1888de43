"""Publish a model folder on the Hub, and a Space that shows it.

python recipes/publish.py outputs/demo --repo_id org/name --dry_run
python recipes/publish.py outputs/demo --repo_id org/name --space org/name-demo
"""

from recipes.errors import Parser, one_sentence


def main() -> None:
    """List what would be sent, then send it, one commit per repository."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="Folder that recipes/sft.py wrote.")
    parser.add_argument("--repo_id", required=True, help="OWNER/NAME of the model.")
    parser.add_argument("--space", help="OWNER/NAME of a Space that shows it; by default none.")
    parser.add_argument("--private", action="store_true", help="Only the owner sees it.")
    parser.add_argument("--dry_run", action="store_true", help="List the files, send nothing.")
    parser.add_argument(
        "--include_user_lists",
        action="store_true",
        help="Send run.jsonl too, the lists by user id that lie beside the folder.",
    )
    parser.add_argument(
        "--allow_rare_pairs",
        action="store_true",
        help="Send a co-occurrence memory of pairs of items behind which a single user stands.",
    )
    arguments = parser.parse_args()

    # They take seconds, which --help and a wrong option need not wait for.
    from recipes.hub.files import model_files, space_files
    from recipes.hub.publishing import Destination, listing

    private = arguments.private or None
    model = Destination(arguments.repo_id, private=private)
    files = model_files(
        arguments.folder,
        arguments.repo_id,
        arguments.include_user_lists,
        arguments.allow_rare_pairs,
    )
    parcels = [(model, files)]
    if arguments.space:
        variables = {"TTDS_MODEL": arguments.repo_id}
        space = Destination(arguments.space, "space", private, variables=variables)
        parcels.append((space, space_files(arguments.repo_id)))
    for destination, parcel in parcels:
        print(listing(destination, parcel))
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


if __name__ == "__main__":
    with one_sentence():
        main()
