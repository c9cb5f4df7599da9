"""TRL's GRPOTrainer for `medreport bench rl --trl`: one step on the model of `launch.bench.peer_rl`.

Where there is no Triton, as on a CPU, the trainer multiplies every position with the vocabulary, prompts too. It has no
setting against that; `CompletionsOnly` scores the new tokens alone, with TRL's own functions.
"""

import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax


class CompletionsOnly(GRPOTrainer):
    """The trainer with logits for the new tokens only."""

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **options):
        kept = model(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1)
        logits = kept.logits[:, :-1] / self.temperature
        logp = selective_log_softmax(logits, input_ids[:, -logits_to_keep:])
        with torch.no_grad():
            return logp, entropy_from_logits(logits), None


def step(model: Any, shape: Any, prompts: list[list[int]], device: str) -> float:
    """Seconds of one step: rollout of all prompts, rewards, one update."""
    end = "[END]"  # id 0, which no prompt has; a name that is part of a number would be cut out of it
    vocabulary = {end: 0} | {str(number): number for number in range(1, shape.vocabulary)}
    words = Tokenizer(WordLevel(vocabulary, unk_token=end))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=end, eos_token=end, padding_side="left")
    samples = shape.prompts * shape.group
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            directory,
            max_steps=1,
            per_device_train_batch_size=shape.peer_rows,
            gradient_accumulation_steps=samples // shape.peer_rows,
            num_generations=shape.group,
            max_completion_length=shape.new_tokens,
            generation_kwargs={"min_new_tokens": shape.new_tokens},
            temperature=1.0,
            top_k=0,
            loss_type="grpo",
            learning_rate=3e-5,
            beta=0.0,
            bf16=shape.dtype == "bfloat16",
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = CompletionsOnly(
            model=model,
            reward_funcs=even_share,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, prompt)) for prompt in prompts]}),
            processing_class=tokenizer,
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    read = trainer.state.num_input_tokens_seen
    expected = samples * (len(prompts[0]) + shape.new_tokens)
    assert read == expected, f"{read} tokens instead of {expected}"
    return seconds


def even_share(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    """The share of even tokens of each sample."""
    return [sum(token % 2 == 0 for token in tokens) / len(tokens) for tokens in completion_ids]
