"""A program that changes lists, trees and tables all the time, as programs change them, in made-up memory."""

from __future__ import annotations

import random
import struct
from typing import Protocol

from katana_cc.process.reachable import Root, WalkedType
from katana_cc.transform.model import Copy, Initial, Pointer, Repeat, Transformation

NODE = Transformation(
    "struct node", 24, 40,
    (
        Initial(0, 128, "fresh"),
        Copy(16, 0, 8, "key", "key"),
        Pointer(24, 8, "struct node", "next", "next"),
        Pointer(32, 16, "struct node", "prev", "prev"),
    ),
)  # fmt: skip
TABLE = Transformation("struct node *", 8, 8, (Pointer(0, 0, "struct node"),))
TREE = Transformation(
    "struct tree", 40, 40,
    (
        Pointer(0, 0, "struct node", "list", "list"),
        Pointer(8, 8, "struct tree", "left", "left"),
        Pointer(16, 16, "struct tree", "right", "right"),
        Pointer(24, 24, "struct node *", "table", "table"),
        Copy(32, 32, 8, "key", "key"),
    ),
)  # fmt: skip
TYPES = [WalkedType(t) for t in (NODE, TABLE, TREE)]
VARIABLES = 0x404000
HEADS = Transformation("heads", 32, 32, (Repeat(4, 0, 8, 0, 8, (Pointer(0, 0, "struct node"),), "[]", "[]"),))
TOP = Transformation("top", 8, 8, (Pointer(0, 0, "struct tree"),))


class Store(Protocol):
    """A heap."""

    def malloc(self, size: int) -> int:
        """A block."""

    def release(self, block: int) -> None:
        """Take it back."""

    def put(self, address: int, form: str, *values: int) -> None:
        """Write values, packed as `struct` does it."""

    def get(self, address: int) -> int:
        """The word there."""


class Program:
    """Lists, trees and tables that change all the time, as programs change them."""

    def __init__(self, seed: int, heap: Store) -> None:
        self.random = random.Random(seed)
        self.heap = heap
        self.heads = [0, 0, 0, 0]
        self.top = 0
        self.lists: list[list[int]] = [[], [], [], []]
        self.trees: list[int] = []
        self.tables: dict[int, list[int]] = {}

    def roots(self) -> list[Root]:
        """The variables."""
        return [
            Root(HEADS, VARIABLES, struct.pack("<4Q", *self.heads)),
            Root(TOP, VARIABLES + 64, struct.pack("<Q", self.top)),
        ]

    def relink(self, number: int) -> None:
        """Write the pointers of a list."""
        nodes = self.lists[number]
        self.heads[number] = nodes[0] if nodes else 0
        for i, node in enumerate(nodes):
            self.heap.put(node + 8, "QQ", nodes[i + 1] if i + 1 < len(nodes) else 0, nodes[i - 1] if i else 0)

    def step(self) -> None:
        """One thing that it does."""
        r = self.random
        number = r.randrange(4)
        nodes = self.lists[number]
        match r.randrange(12):
            case 0 | 1 | 2:
                node = self.heap.malloc(24)
                self.heap.put(node, "Q", r.getrandbits(40))
                nodes.insert(r.choice((0, len(nodes), r.randrange(len(nodes) + 1))), node)
            case 3 | 4 if nodes:
                gone = nodes.pop(r.randrange(len(nodes)))
                for table, entries in self.tables.items():
                    for i, entry in enumerate(entries):
                        if entry == gone:
                            entries[i] = 0
                            self.heap.put(table + 8 * i, "Q", 0)
                self.heap.release(gone)
            case 5 if nodes:  # to the front, as caches do it
                nodes.insert(0, nodes.pop(r.randrange(len(nodes))))
            case 6 if nodes:  # to another list
                self.lists[(number + 1) % 4].append(nodes.pop())
                self.relink((number + 1) % 4)
            case 7:
                self.grow_tree()
            case 8 if self.trees:
                self.rotate()
            case 9 if self.tables and nodes:
                table = r.choice(list(self.tables))
                entries = self.tables[table]
                i = r.randrange(len(entries))
                entries[i] = r.choice(nodes)
                self.heap.put(table + 8 * i, "Q", entries[i])
            case 10 if nodes:
                self.heap.put(r.choice(nodes), "Q", r.getrandbits(40))
            case 11 if self.trees:
                self.new_table(r.choice(self.trees))
        self.relink(number)

    def grow_tree(self) -> None:
        """One more tree node, where there is room."""
        fresh = self.heap.malloc(40)
        self.heap.put(fresh, "QQQQQ", 0, 0, 0, 0, 7)
        at = VARIABLES
        here = self.top
        while here:
            at = here + self.random.choice((8, 16))
            here = self.heap.get(at)
        if at == VARIABLES:
            self.top = fresh
        else:
            self.heap.put(at, "Q", fresh)
        self.trees.append(fresh)

    def rotate(self) -> None:
        """The top of the tree goes below its left child."""
        top, left = self.top, self.heap.get(self.top + 8)
        if left:
            self.heap.put(top + 8, "Q", self.heap.get(left + 16))
            self.heap.put(left + 16, "Q", top)
            self.top = left

    def new_table(self, tree: int) -> None:
        """A table of another size in the place of the one that a tree node has; of what it held, as much as fits."""
        old = self.heap.get(tree + 24)
        size = self.random.choice((1, 3, 10, 40, 700))
        table = self.heap.malloc(8 * size)
        entries = (self.tables.pop(old, [])[:size] + [0] * size)[:size]
        self.heap.put(table, f"{size}Q", *entries)
        self.heap.put(tree + 24, "Q", table)
        self.tables[table] = entries
        if old:
            self.heap.release(old)
