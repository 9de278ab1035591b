"""
Which operation gets which rule
===============================

``describe`` runs a network once and lists what every operation gets, functional calls included. An operation without a rule
is named in an error, never guessed.
"""

# %%

import matplotlib.pyplot as plt
import torch
from torch import nn

from pfungst.errors import UncoveredOperation
from pfungst.relevance import On, Pass, attribute, composite, describe


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.skip = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y = torch.relu(self.bn(self.conv(x)))
        y = y + self.skip(x)
        return self.head(y.mean((2, 3)))


torch.manual_seed(0)
net, x = Net().eval(), torch.rand(2, 3, 16, 16)
print(describe(net, x))

# %%
# A function that is in no table:


class Odd(Net):
    def forward(self, x):
        return super().forward(torch.lgamma(x + 1))


odd = Odd().eval()
try:
    attribute(odd, x, 0)
except UncoveredOperation as error:
    print(error)

# %%
# Say what it is to get, and it is explained:

rules = composite("epsilon_plus").assign(On(operation="lgamma"), Pass())
relevance = attribute(odd, x, 0, rules)
relevance.plot(0)
plt.show()
