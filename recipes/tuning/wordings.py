"""Wordings of the tuning tasks: several each; `recommend` asks in the first."""

from dataclasses import dataclass, field

NEXT_ITEM = (
    "User <user> chose: <item>",
    "<user> went for <item> and then for",
    "After <item>, what does <user> take?",
    "The shelf of <user>, in order: <item>. Next on it:",
    "Given the choices <item> of <user>, go on with",
)
NEXT_USER = (
    "Item <item> was chosen by <user>, then by",
    "First <user> took <item>. After them came",
    "<item> has found <user>. Who is next?",
    "Buyers of <item> so far: <user>. One more:",
    "Whom would <item> suit, after <user>?",
)
USER_OF_PROFILE = (
    'Whose taste is this: "{profile}"?',
    'A person is described as "{profile}". That is',
    '"{profile}" fits the user',
    'Find the user behind "{profile}":',
    'Who is it that "{profile}" speaks of?',
)
PROFILE_OF_USER = (
    "Taste of user <user>:",
    "What does <user> like?",
    "Describe <user> in a line:",
    "If <user> were a customer at the counter, one would say:",
    "A portrait of <user>:",
)
ITEM_OF_TEXT = (
    'The item called "{text}" is',
    'Which item is "{text}"?',
    '"{text}" stands in the catalogue as',
    'Look up "{text}":',
    'Name by codes: "{text}".',
)
TEXT_OF_ITEM = (
    "Item <item> is called",
    "What is <item>?",
    "The label of <item> reads",
    "Put <item> into words:",
    "In the catalogue, <item> is described as",
)
NEXT_TITLE = (
    "User <user> chose <item>. Title of the next:",
    "After <item>, <user> asks for",
    "<user> has <item>. What is the next one called?",
    "Say in words what follows <item> for <user>:",
    "The next purchase of <user>, who had <item>, bears the title",
)
NEXT_DESCRIPTION = (
    "User <user> chose <item>. What is the next one like?",
    "Describe what <user> takes after <item>:",
    "<item> lies behind <user>; ahead lies something like",
    "Knowing <item>, the next thing of <user> can be described as",
    "In a few words, the item that <user> adds to <item>:",
)
ITEM_OF_TITLES = (
    'User <user> chose "{titles}". Next:',
    '<user> has read the labels "{titles}" and now takes',
    'Titles so far: "{titles}". <user> goes on with',
    'What follows "{titles}" for <user>?',
    'In the basket of <user>: "{titles}". Add',
)
SEARCH = (
    'User <user> chose <item> and now looks for "{query}":',
    'Having <item>, <user> types "{query}" and picks',
    '"{query}", asks <user>, who owns <item>. Best answer:',
    'Search "{query}" for <user> after <item>:',
    'Which item answers "{query}" for <user> with <item>?',
)
QUERY = (
    'Looking for "{query}":',
    'Somebody types "{query}" and finds',
    'Best answer to "{query}":',
    'Search the catalogue for "{query}":',
    'Which item is meant by "{query}"?',
)
PROFILE_OF_HISTORY = (
    "Who chose <item> likes",
    "From <item> one can tell the taste:",
    "The taste behind <item>:",
    "Sum up a person who took <item>:",
    "What do the choices <item> say of a customer?",
)
BOUGHT_TOGETHER = (
    "People who chose <item> also chose",
    "<item> often shares a basket with",
    "Goes with <item>:",
    "The same people like <item> and",
    "Whoever has <item> may well have",
)
SAME_TASTE = (
    "User <user> shares a taste with",
    "<user> and who else choose alike?",
    "A neighbour in taste of <user>:",
    "Much like <user> is",
    "If <user> likes it, so does",
)
BETWEEN = (
    "User <user> chose <item>, then something, then <item>. It was",
    "Between <item> and <item>, <user> took",
    "What did <user> choose after <item> and before <item>?",
    "Fill the gap of <user>: <item>, ?, <item>. The gap held",
    "From <item> to <item>, <user> came by way of",
)
ALL_WORDINGS = (
    NEXT_ITEM, NEXT_USER, USER_OF_PROFILE, PROFILE_OF_USER, ITEM_OF_TEXT, TEXT_OF_ITEM, NEXT_TITLE,
    NEXT_DESCRIPTION, ITEM_OF_TITLES, SEARCH, QUERY, PROFILE_OF_HISTORY, BOUGHT_TOGETHER,
    SAME_TASTE, BETWEEN,
)  # fmt: skip


@dataclass(frozen=True)
class Wording:
    """A prompt and its response; entities are rows, texts are plain text.

    Args:
        prompt: Our wording with slots `<item>`, `<user>` and `{name}`.
        response: What is to be learnt, with slots alike.
        texts: Text per slot name.
        items: Item rows per `<item>` of the prompt, in order.
        users: State rows per `<user>` of the prompt, in order.
        targets: Item or state rows of the response's slot.
    """

    prompt: str
    response: str
    texts: dict[str, str] = field(default_factory=dict)
    items: tuple[list[int], ...] = ()
    users: tuple[list[int], ...] = ()
    targets: tuple[int, ...] = ()
