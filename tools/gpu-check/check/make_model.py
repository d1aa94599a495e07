#!/usr/bin/env python3
"""Makes a language model of random weights and a tokenizer for it, into a folder: as large as asked for, the same bytes for the same seed.

    make_model.py FOLDER [small]
"""
import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Some 325 million parameters, 650 MB as bfloat16; and a small one to try the way there on a processor.
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16}
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
TEXT = ["tokens leave the device one behind the other", "a card that was lost comes back in its own time", "what two engines share is never quite free"]


def main():
    folder, shape = pathlib.Path(sys.argv[1]), SMALL if sys.argv[2:] == ["small"] else LARGE
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=16_384, bos_token_id=0, eos_token_id=1, pad_token_id=1, **shape))
    # Only printable ASCII is said, and the end never of itself: each text is as long as it was asked for, and cut where its tokens are.
    pieces = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    silent = [token for token, piece in enumerate(pieces) if token < 2 or not (piece.isascii() and piece.isprintable())]
    model.generation_config.suppress_tokens = silent
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


main()
