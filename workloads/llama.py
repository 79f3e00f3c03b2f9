# SPDX-License-Identifier: MIT
"""
A Llama with random weights, by PyTorch and transformers, that works when it is its turn (--turns), or generates tokens when it
is asked: it answers with the first token, and with what decided on it, and generates the others then; any that differs is told in
the next answer.
"""

import sys
import time

import asked

parser = asked.arguments(__doc__)
parser.add_argument("--layers", type=int, default=16, help="16 give 6.55 GiB on the GPU (default)")
parser.add_argument("--tokens", type=int, default=8, help="that it generates at a time (default 8)")
parser.add_argument("--turns", action="store_true", help="make the steps that standard input asks for: 'token N', 'prompt N'")
options = parser.parse_args()

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

PROMPT = 32
BATCH, LONG = 4, 1024  # prompts, and tokens of each


def bits_of(logits):
    """A whole number that depends on every bit of them."""
    bits = logits.view(torch.int16).to(torch.int64)
    return int((bits * torch.arange(1, bits.shape[-1] + 1, device="cuda")).sum())


class Llama:
    def __init__(self):
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=options.layers,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32000,
        )
        with torch.device("cuda"):
            torch.set_default_dtype(torch.bfloat16)
            self.model = LlamaForCausalLM(config).eval()
        self.prompt = torch.arange(PROMPT, device="cuda").unsqueeze(0)

    def tokens(self):
        with torch.no_grad():
            all_of_them = self.model.generate(
                self.prompt, max_new_tokens=options.tokens, do_sample=False, pad_token_id=0
            )
        return all_of_them[0, -options.tokens :].tolist()

    def first(self):
        """The token after the prompt, and the logits that it was chosen by, bit for bit."""
        with torch.no_grad():
            logits = self.model(self.prompt, use_cache=False).logits[0, -1]
        return [int(logits.argmax()), bits_of(logits)]

    def gpu_bytes(self):
        return torch.cuda.memory_reserved()


class Tokens:
    """A step is one token. Python takes longer to submit it than the GPU to compute it."""

    epoch = options.tokens

    def __init__(self, llama):
        self.llama = llama

    def submit(self, i):
        if i == 0:
            self.next, self.past = self.llama.prompt, None
        with torch.no_grad():
            out = self.llama.model(self.next, past_key_values=self.past, use_cache=True)
        self.next, self.past = out.logits[:, -1:].argmax(-1), out.past_key_values
        return self.next

    def result(self, token):
        return int(token)


class Prompts:
    """A step is a batch of long prompts. The GPU takes longer to compute them than Python to submit them."""

    epoch = 1

    def __init__(self, llama):
        self.llama = llama
        self.prompts = torch.arange(BATCH * LONG, device="cuda").view(BATCH, LONG)

    def submit(self, _):
        with torch.no_grad():
            states = self.llama.model.model(self.prompts, use_cache=False)[0]
            return self.llama.model.lm_head(states[:, -1])

    def result(self, logits):
        return bits_of(logits)


def when_asked(llama):
    tokens, first = llama.tokens(), llama.first()
    if (llama.tokens(), llama.first()) != (tokens, first):
        sys.exit("llama.py: two runs differ without any checkpoint")
    questions = asked.Asked(options.dir)
    wrong = 0
    asked.ready()
    while True:
        if questions.new():
            began = time.time()
            now = llama.first()
            questions.answer(
                checksum=asked.digest_of(now),
                tokens=asked.digest_of(tokens),
                steps=questions.counter + 1,
                wrong=wrong + (now != first),
                step_ms=(time.time() - began) * 1e3,
                gpu_bytes=llama.gpu_bytes(),
            )
            wrong += llama.tokens() != tokens
        time.sleep(asked.POLL_S)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("llama.py: PyTorch finds no GPU")
    if options.turns:
        llama = Llama()
        asked.take_turns(token=lambda: Tokens(llama), prompt=lambda: Prompts(llama))
    else:
        when_asked(Llama())
