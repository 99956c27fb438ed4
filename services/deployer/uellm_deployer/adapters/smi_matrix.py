"""Matrices as `nvidia-smi topo -m` and `topo -p2p r` print them, read from text that people saved and pasted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from uellm.links import known_class
from uellm.rpc.errors import FieldViolation, InvalidArgumentError

SELF = "X"
PEER_OK = "OK"
PEER_STATES = frozenset({PEER_OK, "CNS", "GNS", "TNS", "NS", "U"})
"""Cells of `topo -p2p`: works; not supported by chipset, GPU, topology, at all; unknown."""

GPU_NAME = re.compile(r"GPU\d+", re.ASCII)
NIC_NAME = re.compile(r"(?!NV\d|GPU\d)[A-Za-z][A-Za-z_-]*\d[\w-]*", re.ASCII)
"""`NIC0`, `mlx5_0`, `mlx4_0` and what other drivers call theirs: letters, then a digit."""

AFFINITY_COLUMNS = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
_LEGACY = {"SOC": "SYS"}
_CELL = re.compile(r"[A-Za-z][A-Za-z0-9#_-]*", re.ASCII)
_ELLIPSES = ("...", "\N{HORIZONTAL ELLIPSIS}")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEGEND = re.compile(r"\s*(?P<nic>NIC\d+):\s+(?P<name>\S+)", re.ASCII)
_HOW = "save the output of `nvidia-smi topo -m` again, whole"


class MatrixError(InvalidArgumentError):
    """A text that is no matrix; `line` and `column` count from 1, 0: of the text as a whole."""

    reason = "TOPOLOGY_UNREADABLE"

    def __init__(self, description: str, line: int = 0, column: int = 0) -> None:
        place = ", ".join(f"{what} {n}" for what, n in (("line", line), ("column", column)) if n)
        super().__init__([FieldViolation(place or "text", description)])
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix. Cells by row and column name; the diagonal is left out, and so are rows that are not there."""

    names: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]
    is_peer_access: bool
    affinities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of each GPU what stands under `AFFINITY_COLUMNS`, as far as it goes; empty for N/A."""
    nic_names: Mapping[str, str] = field(default_factory=dict)
    """From the NIC legend: `mlx5_0` of `NIC0`."""
    warnings: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[str, ...]:
        """Names of the GPUs."""
        return tuple(name for name in self.names if GPU_NAME.fullmatch(name))

    def cell(self, a: str, b: str) -> str:
        """The cell of a pair, from whichever of the two rows is there; empty: neither is."""
        return self.cells.get((a, b)) or self.cells.get((b, a), "")


def read_matrices(text: str) -> list[Matrix]:
    """All matrices of a text, in its order; whatever else stands in it is passed over.

    Raises:
        MatrixError: there is none, or one is damaged.
    """
    lines = [_Line.of(number, line) for number, line in enumerate(text.splitlines(), start=1)]
    readers: list[_Reader] = []
    nic_names: dict[str, str] = {}
    for line in lines:
        if legend := _LEGEND.match(line.text):
            nic_names[legend["nic"]] = legend["name"]
            continue
        known = readers[-1].names if readers else ()
        if not (GPU_NAME.fullmatch(line.first) or line.first in known):
            continue  # legends, code fences, prompts
        if line.is_header:
            readers.append(_Reader.of(line))
        elif readers:
            readers[-1].row(line)
        else:
            raise MatrixError(f"a row before the line that names the columns (GPU0 GPU1 ...); {_HOW}", line.number, 1)
    if not readers:
        raise MatrixError(f"no matrix in it: no line begins with GPU0; {_HOW}")
    return [reader.matrix(nic_names) for reader in readers]


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    tokens: tuple[_Token, ...]

    @staticmethod
    def of(number: int, text: str) -> _Line:
        plain = _ANSI.sub("", text)
        tokens = tuple(_Token(match[0], match.start() + 1) for match in re.finditer(r"\S+", plain))
        return _Line(number, plain, tokens)

    @property
    def first(self) -> str:
        """The first word."""
        return self.tokens[0].text if self.tokens else ""

    @property
    def is_header(self) -> bool:
        """Whether names follow the first GPU, or a heading, or nothing; every row has a cell for itself."""
        if not GPU_NAME.fullmatch(self.first) or any(token.text == SELF for token in self.tokens):
            return False
        if len(self.tokens) == 1:
            return True
        second = self.tokens[1].text
        is_name = GPU_NAME.fullmatch(second) or NIC_NAME.fullmatch(second)
        return bool(is_name) or second in _ELLIPSES or second == "CPU"


class _Reader:
    """Collects the rows below one header."""

    def __init__(self, header: _Line, names: Sequence[str], headings: int) -> None:
        self.header = header
        self.names = tuple(names)
        self._headings = headings
        self._rows: dict[str, tuple[_Line, Sequence[_Token]]] = {}
        self._affinities: dict[str, tuple[str, ...]] = {}
        self._warnings: list[str] = []

    @staticmethod
    def of(header: _Line) -> _Reader:
        names: list[str] = []
        for token in header.tokens:
            if not (GPU_NAME.fullmatch(token.text) or NIC_NAME.fullmatch(token.text)):
                break
            if token.text in names:
                raise MatrixError(f"{token.text} twice; {_HOW}", header.number, token.column)
            names.append(token.text)
        rest = header.tokens[len(names) :]
        if left_out := [token for token in rest if GPU_NAME.fullmatch(token.text)]:
            what = f"the columns before {left_out[0].text} are abbreviated; {_HOW}"
            raise MatrixError(what, header.number, left_out[0].column)
        headings = " ".join(token.text for token in rest)
        return _Reader(header, names, sum(heading in headings for heading in AFFINITY_COLUMNS))

    def row(self, line: _Line) -> None:
        """Take a row: as many cells as there are names; what follows is best effort."""
        name, size = line.tokens[0], len(self.names)
        if name.text not in self.names:
            raise MatrixError(f"{name.text} has no column in line {self.header.number}; {_HOW}", line.number, 1)
        if name.text in self._rows:
            what = f"a second row of {name.text}, after line {self._rows[name.text][0].number}; {_HOW}"
            raise MatrixError(what, line.number, name.column)
        cells = line.tokens[1 : size + 1]
        if len(cells) < size:
            what = f"{len(cells)} of {size} cells in the row of {name.text}: {_HOW}, on lines that are not wrapped"
            raise MatrixError(what, line.number, len(line.text) + 1)
        self._rows[name.text] = (line, cells)
        rest = re.sub(r",\s+", ",", " ".join(token.text for token in line.tokens[size + 1 :])).split()
        found = ("" if value == "N/A" else value for value in rest[: self._headings])
        self._affinities[name.text] = tuple(found)

    def matrix(self, nic_names: Mapping[str, str]) -> Matrix:
        """The matrix, checked: a row for each GPU, the diagonal in its place, symmetric."""
        gpus = [name for name in self.names if GPU_NAME.fullmatch(name)]
        if missing := [name for name in gpus if name not in self._rows]:
            what = f"{', '.join(missing)}: a column, but no row; {_HOW}"
            raise MatrixError(what, self.header.number)
        is_peer_access = self._is_peer_access()
        cells = {
            (row, column): self._cell(line, token, row, column, is_peer_access=is_peer_access)
            for row, (line, tokens) in self._rows.items()
            for column, token in zip(self.names, tokens, strict=True)
        }
        self._check_symmetry(cells, is_peer_access=is_peer_access)
        return Matrix(
            names=self.names,
            cells={pair: cell for pair, cell in cells.items() if cell != SELF},
            is_peer_access=is_peer_access,
            affinities={name: found for name, found in self._affinities.items() if name in gpus},
            nic_names={nic: name for nic, name in nic_names.items() if nic in self.names},
            warnings=tuple(dict.fromkeys(self._warnings)),
        )

    def _is_peer_access(self) -> bool:
        return any(token.text in PEER_STATES for _, tokens in self._rows.values() for token in tokens)

    def _cell(self, line: _Line, token: _Token, row: str, column: str, *, is_peer_access: bool) -> str:
        text = _LEGACY.get(token.text, token.text)
        if (text == SELF) != (row == column):
            what = f"{row} to {column} is {token.text}: a cell is missing or misplaced; {_HOW}"
            raise MatrixError(what, line.number, token.column)
        if text == SELF or (text in PEER_STATES if is_peer_access else known_class(text)):
            return text
        kind, instead = ("peer access", "U") if is_peer_access else ("link class", "SYS")
        if not _CELL.fullmatch(text):
            what = f"{row} to {column} is {token.text}, which is no {kind}; {_HOW}"
            raise MatrixError(what, line.number, token.column)
        self._warnings.append(f"line {line.number}, column {token.column}: unknown {kind} {text}, taken as {instead}")
        return instead

    def _check_symmetry(self, cells: dict[tuple[str, str], str], *, is_peer_access: bool) -> None:
        for (row, column), cell in list(cells.items()):
            mirrored = cells.get((column, row), cell)
            if mirrored == cell:
                continue
            line, tokens = self._rows[row]
            where = tokens[self.names.index(column)].column
            if not is_peer_access:
                what = f"{row} to {column} is {cell}, but {column} to {row} is {mirrored}; {_HOW}"
                raise MatrixError(what, line.number, where)
            worse = cell if mirrored == PEER_OK else mirrored
            cells[row, column] = cells[column, row] = worse
            self._warnings.append(f"line {line.number}, column {where}: peer access one way only, taken as {worse}")
