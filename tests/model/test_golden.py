"""One training step gives the numbers that it gave when they were last looked at.

Print new ones: python -m tests.model.test_golden
"""

import pytest
import torch

from pipeline.model.gpt import GPT
from tests.model.configs import option

# config -> (loss, gradient norm, norm of the update), float32 on a CPU
GOLDEN = {
    "gpt2": (4.114542, 1.119802, 0.201203),
    "llama": (4.120266, 0.7746568, 0.1959508),
    "nanochat": (4.098186, 0.7737139, 0.1379806),
}


def one_step(name: str) -> tuple[float, float, float]:
    """Loss and gradient norm of a fixed batch, and how far one step of AdamW moves the weights."""
    torch.manual_seed(1)
    model = GPT(option(name).changed(n_layer=3))
    ids = torch.randint(0, model.config.text_vocab_size, (8, model.config.block_size + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    _, loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    return loss.item(), gradient_norm.item(), (after - before).norm().item()


@pytest.mark.parametrize("name", GOLDEN)
def test_one_step_gives_the_same_numbers_as_ever(name: str) -> None:
    assert one_step(name) == pytest.approx(GOLDEN[name], rel=1e-4), (
        "The model computes something else than it did. If a refactoring brought you here, it changed the function: "
        "find out how. Only if the change is meant (another initialisation, another formula, a new torch release that "
        "draws other random numbers), put the output of `python -m tests.model.test_golden` into GOLDEN, and say in "
        "the commit what changed the numbers and why that is right; models saved before may then compute otherwise."
    )


if __name__ == "__main__":
    for name in GOLDEN:
        print(f'    "{name}": ({", ".join(f"{number:.7g}" for number in one_step(name))}),')
