"""Which axes do recurrent networks have?

A hidden unit owns a row for each gate and a column of the recurrent weights, and a column of whatever reads the output.
One recurrent module has one hidden size and one state tensor for all its layers and directions, so they go together;
modules of their own are independent.
"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class LSTM(nn.Module):
    """The last output of one LSTM layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.lstm = nn.LSTM(5, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(torch.relu(self.embed(x)))
        return self.head(out[:, -1])


class StackedLSTM(nn.Module):
    """Two layers in one module, and the tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, dropout=0.1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.transpose(0, 1))
        return self.head(out)


class ProjectedLSTM(nn.Module):
    """The cell has one axis, what it is projected to another."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 7, proj_size=4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.head(out)


class ReturnedState(nn.Module):
    """The hidden state is an output, so it stays; what the LSTM reads does not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.lstm = nn.LSTM(5, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out, (hidden, _) = self.lstm(self.embed(x))
        return self.head(out), hidden


class BidirectionalGRU(nn.Module):
    """The two directions are concatenated after each of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.gru(x)
        return self.head(out.mean(dim=1))


class GRUOverRNN(nn.Module):
    """Two modules one after the other, and the last state instead of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6, batch_first=True)
        self.gru = nn.GRU(6, 7, batch_first=True, bias=False)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        _, hidden = self.gru(out)
        return self.head(hidden[-1])


class ReluRNN(nn.Module):
    """An Elman network with relu, and a linear layer between the input and it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.rnn = nn.RNN(5, 6, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(self.embed(x))
        return self.head(out)


class LSTMCellLoop(nn.Module):
    """A Python loop over a cell that starts without a state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        outputs = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs, dim=1)


class GRUCellLoop(nn.Module):
    """A Python loop over a cell that starts from zeros of its own size."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.GRUCell(5, hidden)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return self.head(h)


ENTRIES = (
    ZooEntry(
        "lstm",
        randomised(LSTM),
        normal((2, 6, 4)),
        (
            axis("neurons", 5, "embed.{weight,bias}:0 lstm.weight_ih_l0:1"),
            axis(
                "cells",
                7,
                "lstm.{weight_ih_l0,weight_hh_l0,bias_ih_l0,bias_hh_l0}:0 lstm.weight_hh_l0:1 head.weight:1",
            ),
        ),
    ),
    ZooEntry(
        "lstm_stacked",
        randomised(StackedLSTM),
        normal((2, 5, 4)),
        (
            axis(
                "cells",
                6,
                "lstm.{weight_ih,weight_hh,bias_ih,bias_hh}_{l0,l1}:0 lstm.weight_hh_{l0,l1}:1 lstm.weight_ih_l1:1 "
                "head.weight:1",
            ),
        ),
    ),
    ZooEntry(
        "lstm_with_projection",
        randomised(ProjectedLSTM),
        normal((2, 6, 5)),
        (
            axis("cells", 7, "lstm.{weight_ih_l0,weight_hh_l0,bias_ih_l0,bias_hh_l0}:0 lstm.weight_hr_l0:1"),
            axis("cells", 4, "lstm.weight_hr_l0:0 lstm.weight_hh_l0:1 head.weight:1"),
        ),
    ),
    ZooEntry(
        "lstm_returning_its_state",
        randomised(ReturnedState),
        normal((2, 6, 4)),
        (axis("neurons", 5, "embed.{weight,bias}:0 lstm.weight_ih_l0:1"),),
    ),
    ZooEntry(
        "gru_bidirectional",
        randomised(BidirectionalGRU),
        normal((2, 4, 5)),
        (
            axis(
                "cells",
                6,
                "gru.{weight_ih,weight_hh,bias_ih,bias_hh}_{l0,l1}{,_reverse}:0 gru.weight_hh_{l0,l1}{,_reverse}:1 "
                "gru.weight_ih_l1{,_reverse}:1 head.weight:1",
            ),
        ),
    ),
    ZooEntry(
        "gru_over_rnn",
        randomised(GRUOverRNN),
        normal((2, 5, 4)),
        (
            axis(
                "cells",
                6,
                "rnn.{weight_ih_l0,weight_hh_l0,bias_ih_l0,bias_hh_l0}:0 rnn.weight_hh_l0:1 gru.weight_ih_l0:1",
            ),
            axis("cells", 7, "gru.{weight_ih_l0,weight_hh_l0}:0 gru.weight_hh_l0:1 head.weight:1"),
        ),
    ),
    ZooEntry(
        "rnn_with_relu",
        randomised(ReluRNN),
        normal((2, 7, 4)),
        (
            axis("neurons", 5, "embed.{weight,bias}:0 rnn.weight_ih_l0:1"),
            axis(
                "cells", 6, "rnn.{weight_ih_l0,weight_hh_l0,bias_ih_l0,bias_hh_l0}:0 rnn.weight_hh_l0:1 head.weight:1"
            ),
        ),
    ),
    ZooEntry(
        "lstm_cell_loop",
        randomised(LSTMCellLoop),
        normal((2, 4, 5)),
        (axis("cells", 7, "cell.{weight_ih,weight_hh,bias_ih,bias_hh}:0 cell.weight_hh:1 head.weight:1"),),
    ),
    ZooEntry(
        "gru_cell_loop",
        randomised(GRUCellLoop),
        normal((2, 4, 5)),
        (axis("cells", 6, "cell.{weight_ih,weight_hh,bias_ih,bias_hh}:0 cell.weight_hh:1 head.weight:1"),),
    ),
)
