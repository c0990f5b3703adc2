"""The words of a base: those of its labels, common ones beside them, and the names of its tasks.

A base has one token a word and no way to write another, so a word that is not here is an error
wherever text becomes ids (`dynamics.models.tokens.Tokens.action_ids`).
"""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from dynamics.core.errors import UserError
from dynamics.models.tokens import Prompts

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<racm3:break>", "<eoss>", "<image>")
PROMPT_WORDS = ("[predict]", "[explain]")
SPARE_WORDS = """
a an the and then it its to of from into onto on in at off out over under with by for
left right up down forward forwards backward backwards back front top bottom middle center
above below beside behind near next toward towards away around through across inside outside
clockwise north south east west first second last other same both all
move push pull pick place put take drop lift lower raise turn rotate slide open close go walk
step stop stay wait reach grasp grab hold release throw stack insert remove swap press touch hit
roll tilt pour fold unfold wipe clean cut stir shake toggle turn-left turn-right fill empty
red green blue yellow orange purple pink brown black white grey gray cyan magenta
block box ball cube key door goal cup bowl plate bottle drawer lid handle button lever switch
object robot arm hand gripper agent wall floor table shelf square circle ring cross triangle
one two three four five small large big little tall short
"""
"""Words that people are likely to say later: a base that knows them does not have to be made anew.
Their embeddings are learnt from labels alone, as those of the labels' words are."""
_MIN_ACTION_TOKENS = 10


def words_of(sentences: Iterable[str]) -> list[str]:
    """The words of action sentences, sorted.

    Raises:
        UserError: a word looks like the name of a task.
    """
    words = sorted({word for sentence in sentences for word in sentence.split()})
    for word in words:
        if word.startswith("["):
            raise UserError(
                f"the word {word!r} of the labels begins with a bracket, as the names of a base's "
                "tasks do; write it without"
            )
    return words


def build_tokenizer(tasks: Iterable[str], words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each of some words, in this order, and none for others."""
    tokens = dict.fromkeys((*SPECIALS, *tasks, *PROMPT_WORDS, *words))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<racm3:break>", "<eoss>", "<image>"],
    )


def prompts(sentences: Iterable[str]) -> Prompts:
    """The prompts of a base, with room for the longest sentence and two words more."""
    longest = max((len(sentence.split()) for sentence in sentences), default=0)
    fdp, idm = PROMPT_WORDS
    tokens = max(_MIN_ACTION_TOKENS, longest + 2)
    return Prompts(version="tiny-1", fdp=fdp, idm=idm, action_tokens=tokens)
