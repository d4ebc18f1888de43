"""TTDSForCausalLM: binding, tied embeddings, losses, gradients, a changing catalogue."""

import time

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from modeling_ttds.catalogue_ttds import LIKENESS, SURENESS
from modeling_ttds.configuration_ttds import TTDSConfig, placeholder_ids
from modeling_ttds.modeling_ttds import TTDSForCausalLM
from tests.conftest import altered, build_model, build_tokenizer

LEVELS = 3


@pytest.fixture
def bound(model, states):
    """A model with user states attached, in training mode, without dropout."""
    model.attach_users(states.histories())
    model.user_sids.copy_(model.sids_of_users(model.user_histories))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for tower in (model.item_tower, model.user_tower):
        tower.config.modality_dropout = 0.0
    return model.train()


def prompt(user, items, targets):
    shown = placeholder_ids("user", user, LEVELS)
    for row in items:
        shown += placeholder_ids("item", row, LEVELS)
    answer = [i for row in targets for i in placeholder_ids("item", row, LEVELS)]
    ids = torch.tensor([[5, *shown, *answer]])
    labels = torch.tensor([[-100] * (len(shown) + 1) + answer])
    return ids, labels


def test_configuration_of_plain_dicts_is_whole_and_survives_its_folder(tmp_path):
    assert TTDSConfig().backbone_config.model_type == "llama"
    backbone = {"model_type": "gpt_neox", "vocab_size": 99, "tie_word_embeddings": True}
    config = TTDSConfig(
        backbone_config=backbone,
        item_tower={"num_codes": 16},
        user_tower={"num_codes": 16},
        attn_implementation="eager",
    )
    assert config.backbone_config.vocab_size == 99 and config.tie_word_embeddings
    assert config.item_tower.num_codes == config.user_tower.num_codes == 16
    assert config.backbone_config._attn_implementation == "eager"
    assert TTDSConfig(**config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    loaded = TTDSConfig.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert loaded.backbone_config._attn_implementation == "sdpa"
    for name in ("backbone_config", "item_tower", "user_tower"):
        assert getattr(loaded, name).to_dict() == getattr(config, name).to_dict()


def test_bind_swaps_placeholders_for_todays_sid_tokens(bound):
    ids, labels = prompt(2, [4], [9])
    start, codes = bound.config.sid_token_start, bound.config.item_tower.num_codes
    user = [start + (LEVELS + n) * codes + int(c) for n, c in enumerate(bound.user_sids[2])]
    item = [start + n * codes + int(c) for n, c in enumerate(bound.item_sids[4])]
    target = [start + n * codes + int(c) for n, c in enumerate(bound.item_sids[9])]
    assert bound.bind(ids).tolist() == [[5, *user, *item, *target]]
    assert bound.bind(labels).tolist() == [[-100] * 7 + target]
    bound.item_sids[9] = torch.tensor([1, 0, 1])
    assert bound.bind(labels)[0, 7:].tolist() == [start + 1, start + codes, start + 2 * codes + 1]


def test_a_user_row_without_states_is_refused(model):
    with pytest.raises(ValueError, match="no user states are attached"):
        model.bind(torch.tensor(placeholder_ids("user", 0, LEVELS)))


def test_attached_users_stay_while_the_rows_of_their_items_do(model):
    ids = torch.tensor(placeholder_ids("user", 1, LEVELS))
    model.attach_users(torch.tensor([[-1, 3], [5, 7]]))
    before = model.bind(ids)
    model.add_items([{"item_id": "new", "title": "Walnut kettle"}])
    assert torch.equal(model.bind(ids), before)
    model.remove_items([model.catalogue[0]["item_id"]])
    with pytest.raises(ValueError, match="no user states are attached; call `attach_users`"):
        model.bind(ids)


def test_embedding_of_a_code_is_its_row_plus_its_projected_codebook_vector(bound):
    start, codes = bound.config.sid_token_start, bound.config.item_tower.num_codes
    token = start + (LEVELS + 1) * codes + 5  # <user_1_5>
    expected = bound.get_input_embeddings().weight[token]
    vector = bound.user_tower.codebooks[1, 5] @ bound.codebook_projections.weight[1, 1]
    torch.testing.assert_close(bound.embed(torch.tensor([token]))[0], expected + vector)
    hidden = torch.randn(2, bound.config.backbone_config.hidden_size)
    logits = bound.token_logits(hidden)
    torch.testing.assert_close(logits[:, token], hidden @ (bound.lm_head.weight[token] + vector))
    for kind, k in (("item", 0), ("user", 1)):
        for level in range(LEVELS):
            first = start + (k * LEVELS + level) * codes
            torch.testing.assert_close(
                bound.level_logits(hidden, kind, level), logits[:, first : first + codes]
            )


def children(model, row, level):
    """Return the tokens that may follow an item's first codes: those of items that share them."""
    sids = model.item_sids
    alike = (sids[:, :level] == sids[row, :level]).all(1)
    return model.sid_tokens(sids)[alike, level].unique()


def test_loss_is_the_cross_entropy_of_the_bound_labels_among_their_siblings(bound):
    ids, labels = prompt(3, [1, 2], [4, 5])
    logits = bound(input_ids=bound.bind(ids)).logits[0]
    losses = []
    for place, row in ((10, 4), (13, 5)):  # where their SIDs begin
        for level in range(LEVELS):
            tokens = children(bound, row, level)
            chosen = bound.sid_tokens(bound.item_sids[row])[level]
            log_probs = logits[place + level - 1, tokens].log_softmax(-1)
            losses.append(-log_probs[tokens == chosen][0])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(bound(input_ids=ids, labels=labels).loss, expected)
    half = bound(input_ids=ids, labels=labels, num_items_in_batch=12).loss
    torch.testing.assert_close(half, expected / 2)


def first_layers(model):
    return {
        "item encoder": model.item_tower.encoders["text"][0].weight,
        "item collaborative encoder": model.item_tower.encoders["collaborative"][0].weight,
        "item codebooks": model.item_tower.codebooks,
        "user encoder": model.user_tower.encoders["text"][0].weight,
        "user codebooks": model.user_tower.codebooks,
    }


def test_language_model_loss_reaches_both_towers(bound):
    bound.config.tower_grad_scale, bound.config.tower_weight = 1.0, 0.0
    ids, labels = prompt(3, [1, 2], [4, 5])
    bound(input_ids=ids, labels=labels).loss.backward()
    for name, weight in first_layers(bound).items():
        assert weight.grad.isfinite().all() and weight.grad.abs().sum() > 0, name


def test_without_the_gradient_path_the_towers_stay_out(bound):
    ids, labels = prompt(3, [1, 2], [4, 5])
    bound(input_ids=ids, labels=labels).loss.backward()
    for name, weight in first_layers(bound).items():
        assert weight.grad is None or not weight.grad.any(), name


def test_straight_through_gradient_is_that_of_the_embedded_residual(bound):
    """With the codebook vector replaced by the residual, a numeric derivative agrees."""
    bound.config.tower_grad_scale = 1.0
    bound.double()
    ids, labels = prompt(3, [1], [4])
    weight = bound.item_tower.encoders["text"][0].weight
    bound(input_ids=ids, labels=labels).loss.backward()
    # Numeric: embed residual minus its value today, a number that moves with the encoder.
    rows = torch.tensor([1, 4])
    codes = bound.item_sids[rows]

    def residuals():
        posterior = bound.item_tower.encode(bound.item_text[rows], bound.item_collaborative[rows])
        return bound.item_tower.quantise(posterior.mean, codes).residuals

    with torch.no_grad():
        today = residuals()
        context = bound.context(ids)
        base = bound.embed(bound.bind(ids), context.items)
        places = {1: 4, 4: 7}

        def loss():
            embeddings = base.clone()
            moved = residuals() - today
            for entity, row in enumerate(rows.tolist()):
                for level in range(LEVELS):
                    added = moved[entity, level] @ bound.codebook_projections.weight[0, level]
                    embeddings[0, places[row] + level] += added
            states = bound.model(inputs_embeds=embeddings).last_hidden_state
            return bound._log_probs(states[:, :-1], labels[:, 1:], context, None, 1.0).loss

        for index in ((0, 0), (3, 5), (7, 2)):
            step = 1e-5
            kept = weight[index].item()
            weight[index] = kept + step
            above = loss()
            weight[index] = kept - step
            below = loss()
            weight[index] = kept
            numeric = ((above - below) / (2 * step)).item()
            assert weight.grad[index].item() == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_soft_targets_let_codes_move_to_where_the_model_predicts(bound):
    bound.config.tower_grad_scale, bound.config.soft_target_weight = 1.0, 0.5
    ids, labels = prompt(3, [1], [4])
    hard = bound.eval()(input_ids=ids, labels=labels).loss
    loss = bound.train()(input_ids=ids, labels=labels).loss
    assert loss != hard
    path = bound.item_tower.quantise(
        bound.item_tower.encode(bound.item_text[4:5], bound.item_collaborative[4:5]).mean,
        bound.item_sids[4:5],
    )
    q = bound.item_tower.code_log_probs(path.residuals)[0].exp()
    logits = bound.eval()(input_ids=bound.bind(ids)).logits[0, 6:9]
    start, codes = bound.config.sid_token_start, bound.config.item_tower.num_codes
    soft = 0
    for n in range(LEVELS):
        tokens = children(bound, 4, n)
        share = q[n, tokens - start - n * codes]
        soft -= (share / share.sum() * logits[n, tokens].log_softmax(-1)).sum()
    torch.testing.assert_close(loss, hard / 2 + soft / LEVELS / 2)


def test_token_alignment_pulls_codes_to_text_and_not_text_to_codes(bound):
    ids, labels = prompt(3, [1, 2], [4])
    entities = torch.tensor([placeholder_ids("item", row, LEVELS) for row in (1, 2, 4)])
    texts = torch.tensor([[7, 8, -100], [9, -100, -100], [10, 11, 12]])
    plain = bound(input_ids=ids, labels=labels)
    bound.config.infonce_weight, bound.config.cosine_weight = 0.5, 2.0
    aligned = bound(input_ids=ids, labels=labels, entity_ids=entities, entity_text_ids=texts)
    parts = aligned.losses
    torch.testing.assert_close(
        aligned.loss, plain.loss + 0.5 * parts["align_infonce"] + 2 * parts["align_cosine"]
    )
    shown = bound.embed(bound.bind(entities), bound.context(entities).items)
    codes = bound.model(inputs_embeds=shown).last_hidden_state.mean(1)
    text = torch.stack(
        [
            bound.model(inputs_embeds=bound.embed(row[row >= 0][None])).last_hidden_state[0].mean(0)
            for row in texts
        ]
    )
    cosines = F.normalize(codes, dim=-1) @ F.normalize(text, dim=-1).T
    torch.testing.assert_close(parts["align_cosine"], 1 - cosines.diagonal().mean().detach())
    expected = F.cross_entropy(cosines / 0.1, torch.arange(3)).detach()
    torch.testing.assert_close(parts["align_infonce"], expected)
    contrast, entity = bound._alignment(entities, texts, {})
    (contrast + entity).backward()
    embeddings = bound.get_input_embeddings().weight.grad
    assert embeddings[bound.bind(entities).flatten()].abs().sum(1).min() > 0
    assert not embeddings[texts[texts >= 0]].any()


def test_tower_losses_add_up_over_accumulated_batches(bound):
    bound.config.tower_weight = 2.0
    ids, labels = prompt(3, [1, 2], [4])
    bound.item_tower.eval(), bound.user_tower.eval()
    outputs = bound(input_ids=ids, labels=labels)
    towers = sum(
        tower(*embeddings).loss
        for tower, embeddings in (
            (bound.item_tower, (bound.item_text[[1, 2, 4]], bound.item_collaborative[[1, 2, 4]])),
            (bound.user_tower, bound.user_embeddings(bound.user_histories[[3]])),
        )
    )
    torch.testing.assert_close(outputs.loss, outputs.losses["lm"] + 2 * towers)
    half = bound(input_ids=ids, labels=labels, num_items_in_batch=2 * LEVELS)
    torch.testing.assert_close(half.loss, outputs.loss / 2)


def test_user_embedding_is_the_recency_weighted_mean(model):
    model.config.recency_decay = 0.5
    text, collaborative = model.user_embeddings(torch.tensor([[-1, 3, 8], [-1, -1, -1]]))
    for found, table in ((text, model.item_text), (collaborative, model.item_collaborative)):
        expected = table[8] + 0.5 * table[3]
        torch.testing.assert_close(found[0], expected / expected.norm())
        assert not found[1].any()


NEW = {"item_id": "new", "title": "Bramble walnut kettle", "categories": "Kitchen > Kettles"}


def test_new_items_change_no_weight_and_no_semantic_id(model, tmp_path):
    history = [model.catalogue[3]["item_id"], model.catalogue[9]["item_id"]]
    old_ids = [entry["item_id"] for entry in model.catalogue]
    weights = {name: value.clone() for name, value in model.named_parameters()}
    codes = model.item_sids.clone()
    model.requires_grad_(False)
    model.add_items([NEW, {"item_id": "blank"}])
    assert not any(value.requires_grad for value in model.parameters()), "frozen as before"
    assert torch.equal(model.item_sids[:-2], codes)
    assert len(model.item_sids.unique(dim=0)) == len(codes) + 2
    for name, value in model.named_parameters():  # vectors of pairs get rows for what is new
        rows = "node_pairs" in name
        assert len(value) >= len(weights[name]) if rows else torch.equal(weights[name], value)
    assert model.tokenizer.decode_items(model.tokenizer.encode_items(["new"])) == ["new"]
    everything = model.recommend([history], top_k=len(old_ids), num_beams=80)[0]
    assert "new" in {r.item_id for r in everything}
    assert model.recommend([["new"]], top_k=3)
    model.save_pretrained(tmp_path / "m")
    model.tokenizer.save_pretrained(tmp_path / "m")
    again = TTDSForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert again.recommend([["new"]], top_k=3) == model.recommend([["new"]], top_k=3)


def test_a_new_item_takes_its_share_from_its_siblings_and_moves_no_other_branch(model):
    history = [model.catalogue[3]["item_id"], model.catalogue[9]["item_id"]]
    old_ids = [entry["item_id"] for entry in model.catalogue]
    before = torch.tensor([e.steps for e in model.explain(history, old_ids)])
    sids = model.item_sids.clone()
    model.add_items([NEW])
    after = torch.tensor([e.steps for e in model.explain(history, old_ids)])
    new = model.item_sids[-1]
    for level in range(LEVELS):
        above = (sids[:, :level] == new[:level]).all(1)  # the node is on the newcomer's path
        torch.testing.assert_close(after[~above, level], before[~above, level])
        # Of its siblings each gives the same share; the branch that it joins is another one now.
        siblings = above & (sids[:, level] != new[level])
        share = after[siblings, level] / before[siblings, level]
        torch.testing.assert_close(share, share.mean().expand_as(share))


def test_a_new_item_with_an_old_ones_text_and_company_differs_by_its_last_token_alone(model):
    history = [entry["item_id"] for entry in model.catalogue[:3]]
    compared = 0
    for row in range(10, 20):
        twin = {**model.catalogue[row], "item_id": f"twin-{row}"}
        model.add_items([twin], text_embeddings=model.item_text[row][None])
        model.item_collaborative[-1] = model.item_collaborative[row]
        if (model.item_sids[-1, :-1] == model.item_sids[row, :-1]).all():  # there was room
            old_code, new_code = model.item_sids[[row, -1], -1]
            old_token, new_token = model.sid_tokens(model.item_sids[[row, -1]])[:, -1]
            with torch.no_grad():
                model.lm_head.weight[new_token] = model.lm_head.weight[old_token]
                model.item_tower.codebooks[-1, new_code] = model.item_tower.codebooks[-1, old_code]
            pair = [model.catalogue[row]["item_id"], twin["item_id"]]
            old, new = (torch.tensor(e.steps) for e in model.explain(history, pair))
            torch.testing.assert_close(old, new)
            compared += 1
    assert compared


def test_without_interactions_a_new_item_is_placed_beside_items_of_like_texts(model):
    row = 12
    text = F.normalize(model.item_text, dim=-1)
    weights = ((text[row] @ text.T) / LIKENESS).exp() * model.item_collaborative.any(1)
    expected = (weights[:, None] * model.item_collaborative).sum(0) / weights.sum()
    expected = expected / expected.norm() ** SURENESS
    twin = {**model.catalogue[row], "item_id": "twin"}
    model.add_items([twin], text_embeddings=model.item_text[row][None])
    torch.testing.assert_close(model.item_collaborative[-1], expected, atol=1e-5, rtol=1e-5)


def test_interactions_of_a_new_item_join_its_text(model):
    known = [entry["item_id"] for entry in model.catalogue[:3]]
    model.add_items(
        [NEW, {"item_id": "blank"}],
        histories=[[known[0], "new", known[1]], ["new", known[2]], ["blank"]],
    )
    expected = F.normalize(model.item_collaborative[:3].sum(0), dim=-1)
    torch.testing.assert_close(model.item_collaborative[-2], expected)
    assert not model.item_collaborative[-1].any(), "neither company nor text"
    with pytest.raises(ValueError, match="History 0 holds the unknown item 'nobody'"):
        model.add_items([{"item_id": "other"}], histories=[["other", "nobody"]])
    assert "other" not in model.row_of


def test_ten_thousand_items_join_in_seconds(split, states, tokenizer, options):
    settings = altered(options, num_codes=32)
    tokenizer = build_tokenizer(split, settings, None)
    model = build_model(split, states, tokenizer, settings, None, seed=0)
    words = [entry["title"] for entry in model.catalogue]
    codes = model.item_sids.clone()
    items = [
        {"item_id": f"new-{n}", "title": f"{words[n % 72]} {words[n // 72 % 72]} {n}"}
        for n in range(10_000)
    ]
    begun = time.process_time()
    model.eval().add_items(items)
    assert model.trie.num_levels == LEVELS
    assert time.process_time() - begun < 10
    assert torch.equal(model.item_sids[:72], codes)
    assert len(model.item_sids.unique(dim=0)) == 10_072
    assert len(model.recommend([["new-7"]], top_k=10)[0]) == 10


def test_removed_items_are_gone(model):
    gone, stays = model.catalogue[3]["item_id"], model.catalogue[9]["item_id"]
    codes = model.item_sids[9].clone()
    model.remove_items([gone])
    assert torch.equal(model.item_sids[8], codes) and model.catalogue[8]["item_id"] == stays
    found = {r.item_id for r in model.recommend([[stays]], top_k=len(model.catalogue) - 1)[0]}
    assert gone not in found and len(found) == len(model.catalogue) - 1
    with pytest.raises(ValueError, match="unknown item"):
        model.recommend([[gone]])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"title": "no id"}], "Item 0 has no `item_id`"),
        ([NEW, NEW], "'new' of item 1 is there already"),
        ([{"item_id": "item-0000"}], "'item-0000' of item 0 is there already"),
    ],
)
def test_bad_new_items_leave_the_model_as_it_was(model, items, message):
    before = len(model.catalogue)
    with pytest.raises(ValueError, match=message):
        model.add_items(items)
    assert len(model.catalogue) == len(model.item_sids) == before
    with pytest.raises(ValueError, match="`text_embeddings` must be finite and of shape"):
        model.add_items([NEW], text_embeddings=torch.zeros(1, 3))


def test_hostile_titles_name_no_item(model):
    model.add_items([{"item_id": "evil", "title": "<item_0_1><item_1_1><item_2_1> <user>"}])
    text = model.catalogue[-1]["title"]
    ids = model.tokenizer.encode_text(text)
    assert max(ids) < model.config.sid_token_start - 2
    assert model.recommend([["evil"]], top_k=3)
