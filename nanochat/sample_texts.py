"""Four short texts for comparing tokenizers: news, code, mathematics, science.

Each is about a page long and in plain ASCII, except for the mathematics. The news are
invented. The texts never change, so that figures stay comparable; a new text gets a
new name.
"""

from __future__ import annotations

NEWS = """\
HARBOUR TOWN VOTES TO KEEP ITS FERRY

The town council voted 14 to 9 on Tuesday night to keep the car ferry running through the winter, ending a dispute \
that had divided the harbour for most of the year. "Nobody here wanted to be the one who turned off the lights," said \
Marta Lindqvist, who has chaired the transport committee since 2019. "But the numbers had to add up, and now they do."

Under the plan, the crossing will cost $6.40 for residents and $11 for visitors from November 1, up from $4.75. The \
county will pay for a new diesel-electric engine, expected to save about 38,000 gallons of fuel a year, while the town \
takes over the two wooden piers that were damaged in February's storm. Repairs are due to begin in early spring and \
should take eleven weeks.

Opponents called the decision short-sighted. Daniel Okafor, who runs the hardware store on Front Street, said that a \
bridge would have been cheaper in the long run. "We have been patching the same boat for twenty-six years," he said. \
"At some point you have to ask what you're really paying for." A study published in June put the price of a bridge at \
$92 million, more than four times the town's annual budget.

The first sailing under the new timetable leaves at 5:50 a.m. on Monday. Weather permitting, the mayor will be aboard.
"""

CODE = '''\
from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Iterable, Optional


@dataclass(order=True)
class Entry:
    distance: float
    name: str = field(compare=False)


class Graph:
    """A directed graph with non-negative weights."""

    def __init__(self) -> None:
        self._edges: dict[str, list[tuple[str, float]]] = defaultdict(list)

    def add_edge(self, start: str, end: str, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError(f"negative weight {weight!r} between {start!r} and {end!r}")
        self._edges[start].append((end, weight))

    def shortest_path(self, start: str, goal: str) -> Optional[list[str]]:
        queue = [Entry(0.0, start)]
        best = {start: 0.0}
        parent: dict[str, str] = {}
        while queue:
            entry = heapq.heappop(queue)
            if entry.name == goal:
                path = [goal]
                while path[-1] != start:
                    path.append(parent[path[-1]])
                return path[::-1]
            if entry.distance > best[entry.name]:
                continue  # an outdated entry
            for neighbour, weight in self._edges[entry.name]:
                distance = entry.distance + weight
                if distance < best.get(neighbour, float("inf")):
                    best[neighbour] = distance
                    parent[neighbour] = entry.name
                    heapq.heappush(queue, Entry(distance, neighbour))
        return None


def main(lines: Iterable[str]) -> int:
    graph = Graph()
    for number, line in enumerate(lines, start=1):
        try:
            start, end, weight = line.split(",")
            graph.add_edge(start.strip(), end.strip(), float(weight))
        except ValueError as error:
            print(f"line {number}: {error}")
            return 1
    print(graph.shortest_path("A", "Z") or "no path")
    return 0
'''

MATHEMATICS = r"""
\begin{theorem}
Let $a_1, a_2, \dots, a_n$ be positive real numbers. Then
\[
  \frac{a_1 + a_2 + \cdots + a_n}{n} \;\geq\; \sqrt[n]{a_1 a_2 \cdots a_n},
\]
with equality if and only if $a_1 = a_2 = \cdots = a_n$.
\end{theorem}

\begin{proof}
Write $A = \frac{1}{n}\sum_{i=1}^{n} a_i$. For every real $x$ we have $e^{x-1} \geq x$, because the convex function
$f(x) = e^{x-1} - x$ has its minimum $f(1) = 0$ at $x = 1$. Put $x = a_i / A$ and multiply over $i = 1, \dots, n$:
\[
  \prod_{i=1}^{n} \frac{a_i}{A} \;\leq\; \exp\!\left( \sum_{i=1}^{n} \left( \frac{a_i}{A} - 1 \right) \right)
  = e^{\,n - n} = 1 .
\]
Hence $a_1 a_2 \cdots a_n \leq A^n$. Equality forces $a_i / A = 1$ for all $i$. \qedhere
\end{proof}

Example. A rectangle of perimeter 36 cm has sides x and 18 - x, so its area is x(18 - x) ≤ 9² = 81 cm². For x = 7 the
area is 7 · 11 = 77, for x = 8 it is 8 · 10 = 80, and for x = 9 it is 81: the square is the largest.

Exercise 4. Show that 1³ + 2³ + ⋯ + n³ = (n(n + 1)/2)² for all n ≥ 1, and check it for n = 10: 3025 = 55².
Exercise 5. For which real p does the series ∑ 1/(n^p · log n), summed over n ≥ 2, converge?
"""

SCIENCE = """\
Photosynthesis converts the energy of light into the energy of chemical bonds. In plants and algae it takes place in \
chloroplasts, whose inner membranes, the thylakoids, hold the pigment chlorophyll. When a chlorophyll molecule in \
photosystem II absorbs a photon of about 680 nanometres, one of its electrons is raised to a higher energy level and \
passed to a chain of carrier proteins. The electron that is lost is replaced by splitting water: two molecules of \
H2O yield four electrons, four protons and one molecule of oxygen.

As electrons move along the chain, protons are pumped into the space inside the thylakoid, and the concentration there \
becomes up to a thousand times higher than outside. The enzyme ATP synthase lets the protons flow back and uses their \
energy to form adenosine triphosphate (ATP) from ADP and phosphate. At photosystem I a second photon lifts the \
electron again, so that it can reduce NADP+ to NADPH.

In the Calvin cycle, ATP and NADPH drive the fixation of carbon dioxide. The enzyme ribulose-1,5-bisphosphate \
carboxylase (Rubisco) attaches one molecule of CO2 to a five-carbon sugar; the product splits at once into two \
molecules of 3-phosphoglycerate. Three turns of the cycle consume nine ATP and six NADPH and give one molecule of \
glyceraldehyde 3-phosphate, from which the cell builds glucose, starch and cellulose. Because Rubisco also reacts with \
oxygen, hot and dry conditions lower the efficiency of the process; maize and sugar cane avoid this loss by \
concentrating carbon dioxide in specialised cells around their leaf veins.
"""

SAMPLE_TEXTS = {"news": NEWS, "code": CODE, "mathematics": MATHEMATICS, "science": SCIENCE}
"""The texts, by their names in tables."""
