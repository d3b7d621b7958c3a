"""Each classical system against something that does not share its code."""

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("ortools", reason="needs the extra 'classical'")
pytest.importorskip("skimage", reason="needs the extra 'classical'")
pytest.importorskip("pyamg", reason="needs the extra 'classical'")

from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from skimage.draw import line

from lidiv_backend.clicks import Click
from lidiv_backend.errors import BadClickError
from lidiv_backend.evaluation.classical.base import (
    ReducedImage,
    SeedParameters,
    Seeds,
    make_seeds,
)
from lidiv_backend.evaluation.classical.colour import ColourParameters, log_likelihoods
from lidiv_backend.evaluation.classical.geodesic import GeodesicMatting, shortest_paths
from lidiv_backend.evaluation.classical.graph_cut import (
    NO_IMPLICATIONS,
    CutParameters,
    Energy,
    GraphCut,
    contrast_pairs,
    minimise,
)
from lidiv_backend.evaluation.classical.random_walk import RandomWalk, WalkParameters
from lidiv_backend.evaluation.classical.refine import Refined
from lidiv_backend.evaluation.classical.star import (
    EuclideanStarConvexity,
    GeodesicParameters,
    GeodesicStarConvexity,
    line_implications,
)
from lidiv_backend.evaluation.methods import CLASSICAL, MethodSpec, load_method, version_of
from lidiv_backend.predictor import Proposal

POINT = SeedParameters(radius=0.0, sample_radius=3.0)


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disk_photo(size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A red disk on a green ground, with noise."""
    rows, columns = np.mgrid[:size, :size]
    mask = (rows - 30) ** 2 + (columns - 26) ** 2 <= 15**2
    rng = np.random.default_rng(0)
    rgb = np.where(mask[..., None], (190, 60, 50), (60, 140, 70)) + rng.integers(
        -20, 20, (size, size, 3)
    )
    return rgb.clip(0, 255).astype(np.uint8), mask


def energy_of(mask: np.ndarray, energy: Energy) -> float:
    """The energy as it is written down, term by term; infinite where a constraint is broken."""
    total = 0.0
    flat = mask.ravel()
    for place in itertools.product(*map(range, mask.shape)):
        total += (energy.object_cost if mask[place] else energy.background_cost)[place]
        if energy.certain_object[place] and not mask[place]:
            return np.inf
        if energy.certain_background[place] and mask[place]:
            return np.inf
    for (first, second), weight in zip(energy.pairs, energy.weights, strict=True):
        total += weight * (flat[first] != flat[second])
    for first, second in energy.implications:
        if flat[first] and not flat[second]:
            return np.inf
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("star", [False, True])
def test_the_cut_has_the_least_energy_of_all_65536_masks(seed: int, star: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (4, 4)
    pairs, weights = contrast_pairs(rng.uniform(0, 60, (*shape, 3)).astype(np.float32), 3.0)
    assert len(pairs) == 4 * 3 * 2 + 3 * 3 * 2
    certain_object, certain_background = np.zeros(shape, bool), np.zeros(shape, bool)
    certain_object[1, 1] = certain_background[3, 3] = True
    energy = Energy(
        object_cost=rng.normal(size=shape) * 2,
        background_cost=rng.normal(size=shape) * 2,
        pairs=pairs,
        weights=weights,
        certain_object=certain_object,
        certain_background=certain_background,
        implications=line_implications(np.array([[1, 1]]), shape) if star else NO_IMPLICATIONS,
    )
    mask = minimise(energy)
    # All masks at once; the literal form above is slow, so it checks the winner only.
    every = (np.arange(1 << 16)[:, None] >> np.arange(16)) & 1
    cost = every @ energy.object_cost.ravel() + (1 - every) @ energy.background_cost.ravel()
    cost = cost + (every[:, pairs[:, 0]] != every[:, pairs[:, 1]]) @ weights
    allowed = (every[:, 5] == 1) & (every[:, 15] == 0)
    for first, second in energy.implications:
        allowed &= (every[:, first] == 0) | (every[:, second] == 1)
    best = cost[allowed].min()
    # Capacities are whole thousandths.
    assert energy_of(mask, energy) == pytest.approx(best, abs=0.05)


def test_contrast_pairs_against_the_formula() -> None:
    lab = np.random.default_rng(3).uniform(0, 100, (5, 6, 3)).astype(np.float32)
    pairs, weights = contrast_pairs(lab, 2.0)
    flat = lab.reshape(-1, 3).astype(float)
    places = list(itertools.product(range(5), range(6)))
    wanted = {}
    for i, j in itertools.combinations(range(30), 2):
        (a, b), (c, d) = places[i], places[j]
        if max(abs(a - c), abs(b - d)) == 1:
            wanted[i, j] = ((flat[i] - flat[j]) ** 2).sum(), np.hypot(a - c, b - d)
    beta = 1 / (2 * np.mean([squared for squared, _ in wanted.values()]))
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == set(wanted)
    for pair, weight in zip(pairs.tolist(), weights, strict=True):
        squared, distance = wanted[tuple(sorted(pair))]
        assert weight == pytest.approx(2.0 * np.exp(-beta * squared) / distance)


CLICKS = [
    Click(x=20, y=15),
    Click(x=48, y=40),
    Click(x=5, y=50, positive=False),
    Click(x=35, y=8, positive=False),
]


def star_masks(system: GraphCut, seed: int) -> tuple[np.ndarray, Seeds, ReducedImage]:
    """A mask of random costs, in which nothing but the constraint makes a star."""
    image = system.embed(noisy(56, 64, seed))
    seeds = make_seeds(image, CLICKS, system.seeds)
    costs = np.random.default_rng(seed).normal(scale=20, size=(2, 56, 64))
    costs[1] += 3
    energy = replace(system.energy(image, seeds), object_cost=costs[0], background_cost=costs[1])
    return minimise(energy), seeds, image


@pytest.mark.parametrize("seed", range(3))
def test_euclidean_star_masks_hold_the_lines_to_their_click(seed: int) -> None:
    system = EuclideanStarConvexity(cut=CutParameters(smoothness=10.0))
    mask, seeds, _ = star_masks(system, seed)
    assert 300 < mask.sum() < mask.size - 300
    near = np.pad(mask, 1)
    near = np.logical_or.reduce(
        [near[1 + i : 57 + i, 1 + j : 65 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    )
    strays = 0
    for row, column in np.argwhere(mask):
        distances = ((seeds.positive - (row, column)) ** 2).sum(axis=1)
        centre = seeds.positive[distances.argmin()]
        on_line = line(row, column, *centre)
        # The grid's lines are approximate: never more than a pixel beside the mask.
        assert near[on_line].all()
        strays += not mask[on_line].all()
    assert strays <= 0.1 * mask.sum()
    # Without the constraint the cut of noise is no star: the property is not there by itself.
    free, _, _ = star_masks(GraphCut(cut=CutParameters(smoothness=10.0)), seed)
    assert not all(
        near[line(row, column, *seeds.positive[0])].all() for row, column in np.argwhere(free)
    )


@pytest.mark.parametrize("seed", range(3))
def test_geodesic_star_masks_hold_the_shortest_paths_to_their_click(seed: int) -> None:
    system = GeodesicStarConvexity(
        cut=CutParameters(smoothness=10.0), geodesic=GeodesicParameters(contrast=0.7)
    )
    mask, seeds, image = star_masks(system, seed)
    assert 300 < mask.sum() < mask.size - 300
    cost = system.path_cost(image)
    _, before, _ = grid_dijkstra(cost, seeds.positive)
    for start in np.flatnonzero(mask):
        place = start
        while before[place] >= 0:
            place = before[place]
            assert mask.ravel()[place]
        assert divmod(place, 64) in {tuple(point) for point in seeds.positive.tolist()}


def grid_dijkstra(cost: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, object]:
    """SciPy's Dijkstra on the 8-neighbourhood with steps as `shortest_paths` defines them."""
    height, width = cost.shape
    rows, columns, lengths = [], [], []
    for r, c in itertools.product(range(height), range(width)):
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            if (i or j) and 0 <= r + i < height and 0 <= c + j < width:
                rows.append(r * width + c)
                columns.append((r + i) * width + c + j)
                lengths.append(np.hypot(i, j) * (cost[r, c] + cost[r + i, c + j]) / 2)
    graph = coo_matrix((lengths, (rows, columns)), shape=(cost.size, cost.size)).tocsr()
    indices = [row * width + column for row, column in starts.tolist()]
    return dijkstra(graph, indices=indices, min_only=True, return_predecessors=True)


def test_shortest_paths_against_dijkstra() -> None:
    cost = np.random.default_rng(0).uniform(0.1, 5, (9, 12))
    starts = np.array([[2, 3], [8, 11]])
    found = shortest_paths(cost, starts)
    distance, before, _ = grid_dijkstra(cost, starts)
    np.testing.assert_allclose(found.distance.ravel(), distance, rtol=1e-9)
    own = np.arange(cost.size)
    np.testing.assert_array_equal(found.parent.ravel(), np.where(before < 0, own, before))


def test_shortest_paths_go_around_a_wall() -> None:
    cost = np.ones((5, 7))
    cost[:4, 3] = 1000.0
    distance = shortest_paths(cost, np.array([[0, 0]])).distance
    # Through the gap at the bottom, by hand: three diagonal steps and one straight to (4, 3).
    best = [(0.0, (0, 0))]
    seen: dict[tuple[int, int], float] = {}
    while best:
        length, place = heapq.heappop(best)
        if place in seen:
            continue
        seen[place] = length
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            other = place[0] + i, place[1] + j
            if (i or j) and 0 <= other[0] < 5 and 0 <= other[1] < 7 and cost[other] < 1000:
                heapq.heappush(best, (length + np.hypot(i, j), other))
    assert distance[0, 6] == pytest.approx(seen[0, 6])


def test_the_random_walker_solves_gradys_linear_system() -> None:
    system = RandomWalk(seeds=POINT, walk=WalkParameters(beta=130, tolerance=1e-9))
    smooth = gaussian_filter(noisy(12, 14).astype(float), (1.5, 1.5, 0))
    image = system.embed(smooth.astype(np.uint8))
    clicks = [Click(x=3, y=4), Click(x=10, y=9, positive=False), Click(x=12, y=1, positive=False)]
    seeds = make_seeds(image, clicks, system.seeds)
    lab = image.lab.astype(float) / 100
    # Weights as scikit-image documents them, the system written out densely.
    beta = system.walk.beta / (10 * lab.std()) / np.sqrt(3)
    size = 12 * 14
    laplacian = np.zeros((size, size))
    for r, c in itertools.product(range(12), range(14)):
        for i, j in ((0, 1), (1, 0)):
            if r + i < 12 and c + j < 14:
                first, second = r * 14 + c, (r + i) * 14 + c + j
                weight = np.exp(-beta * ((lab[r, c] - lab[r + i, c + j]) ** 2).sum()) + 1e-10
                laplacian[[first, second], [second, first]] -= weight
                laplacian[[first, second], [first, second]] += weight
    seeded = (seeds.object | seeds.background).ravel()
    free = ~seeded
    given = seeds.object.ravel()[seeded].astype(float)
    expected = np.zeros(size)
    expected[seeded] = given
    expected[free] = np.linalg.solve(
        laplacian[np.ix_(free, free)], -laplacian[np.ix_(free, seeded)] @ given
    )
    found = system.probability(image, seeds).ravel()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 10 < (expected > 0.5).sum() < size - 10


def test_geodesic_matting_by_hand() -> None:
    # Three stripes, dark, bright, dark; the outer ones have the same colour.
    rgb = np.full((9, 30, 3), 40, np.uint8)
    rgb[:, 10:20] = 220
    system = GeodesicMatting(seeds=POINT)
    image = system.embed(rgb)
    clicks = [Click(x=15, y=4), Click(x=2, y=4, positive=False)]
    mask = system.predict(image, clicks)[0].mask
    # The bright stripe costs nothing to reach; its edges are steep on both sides, so the right
    # stripe, which is behind one edge from the object and behind two from the background, is the
    # object's, though its colour is the background's.
    assert mask[:, 12:18].all()
    assert not mask[:, :8].any()
    assert mask[:, 22:].all()


def test_colours_against_counting() -> None:
    system = GraphCut()
    rgb, _ = disk_photo()
    image = system.embed(rgb)
    clicks = [Click(x=26, y=30), Click(x=55, y=5, positive=False)]
    seeds = make_seeds(image, clicks, system.seeds)
    sharp = ColourParameters(bins=4, smoothing=(1e-6, 1e-6, 1e-6), uniform=0.1)
    on_object, on_background = log_likelihoods(image.lab, seeds, sharp)
    edges = [np.linspace(0, 100, 5), np.linspace(-128, 128, 5), np.linspace(-128, 128, 5)]
    for sample, found in (
        (seeds.object_sample, on_object),
        (seeds.background_sample, on_background),
    ):
        counts, _ = np.histogramdd(image.lab[sample], bins=edges)
        cells = tuple(np.clip(np.digitize(image.lab[..., k], edges[k]) - 1, 0, 3) for k in range(3))
        density = counts / counts.sum() * 64
        np.testing.assert_allclose(found, np.log(0.9 * density + 0.1)[cells], rtol=1e-6)


def test_seeds_are_disks_around_the_clicks_of_the_reduced_image() -> None:
    system = GraphCut(longest_side=50)
    image = system.embed(noisy(60, 100))
    assert image.lab.shape == (30, 50, 3)
    clicks = [Click(x=20, y=20), Click(x=24, y=20, positive=False), Click(x=99, y=59)]
    seeds = make_seeds(image, clicks, SeedParameters(radius=2, sample_radius=4))
    assert seeds.positive.tolist() == [[10, 10], [29, 49]]
    assert seeds.negative.tolist() == [[10, 12]]
    assert seeds.object[10, 10]
    assert seeds.background[10, 12]
    for positive, negative in (
        (seeds.object, seeds.background),
        (seeds.object_sample, seeds.background_sample),
    ):
        assert not (positive & negative).any()
    assert (seeds.object <= seeds.object_sample).all()
    # A click of each sign on the same place of the reduced image contradicts nothing.
    close = [Click(x=20, y=20), Click(x=21, y=20, positive=False)]
    both = make_seeds(image, close, SeedParameters())
    assert both.object[10, 10]


@pytest.mark.parametrize("name", sorted(CLASSICAL))
def test_every_system_finds_a_red_disk_on_green(name: str) -> None:
    system = load_method(MethodSpec(label=name, source=name, longest_side=48))
    rgb, target = disk_photo()
    image = system.embed(rgb)
    clicks = [
        Click(x=26, y=30),
        Click(x=56, y=30, positive=False),
        Click(x=5, y=5, positive=False),
    ]
    proposals = system.predict(image, clicks)
    assert len(proposals) == 1
    assert isinstance(proposals[0], Proposal)
    mask = proposals[0].mask
    assert mask.dtype == bool
    assert mask.shape == target.shape
    assert (mask & target).sum() / (mask | target).sum() > 0.85
    assert system.predict(image, clicks)[0].mask.tobytes() == mask.tobytes()
    assert system.needs_both_signs is True
    with pytest.raises(BadClickError, match="positive and a negative"):
        system.predict(image, clicks[:1])
    with pytest.raises(BadClickError, match="outside"):
        system.predict(image, [*clicks, Click(x=900, y=1)])
    other = load_method(MethodSpec(label=name, source=name, longest_side=None))
    assert version_of(other) != version_of(system)


class Rough:
    """A disk of the wrong size around the click."""

    version = "rough"

    def embed(self, rgb: np.ndarray) -> tuple[int, ...]:
        return rgb.shape[:2]

    def predict(self, image, clicks, previous=None):
        rows, columns = np.indices(image)
        mask = (rows - clicks[0].y) ** 2 + (columns - clicks[0].x) ** 2 <= self.radius**2
        return [Proposal(mask=mask, score=0.7, head=3)]

    radius = 19


@pytest.mark.parametrize("radius", [12, 15, 18])
def test_refining_snaps_a_rough_mask_to_the_edge(radius: int) -> None:
    rgb, target = disk_photo()
    rough = Rough()
    rough.radius = radius
    refined = Refined(rough, longest_side=None)
    clicks = [Click(x=26, y=30)]
    proposal = refined.predict(refined.embed(rgb), clicks)[0]
    assert (proposal.mask & target).sum() / (proposal.mask | target).sum() > 0.97
    assert (proposal.score, proposal.head) == (0.7, 3)
    assert refined.needs_both_signs is False
    assert refined.version != Refined(rough, longest_side=320).version


def test_refining_obeys_clicks_and_survives_empty_masks() -> None:
    rgb, _ = disk_photo()
    rough = Rough()
    rough.radius = -1
    refined = load_method(MethodSpec(label="r", source="graph-cut+graph-cut", longest_side=64))
    assert refined.needs_both_signs is True
    refined = Refined(rough)
    mask = refined.predict(refined.embed(rgb), [Click(x=26, y=30), Click(x=50, y=50)])[0].mask
    assert mask[30, 26]
    assert mask[50, 50]
