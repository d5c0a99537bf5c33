"""What is read from a compiled program, against programs whose collectives are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from latentomni_jax.layout import InputError
from latentomni_jax.pod.certify import certify
from latentomni_jax.pod.chips import CHIPS, Topology
from latentomni_jax.pod.collectives import _groups, read_collectives
from latentomni_jax.pod.programs import Traced

LAYERS, ROWS, WIDTH = 5, 64, 1024


@pytest.fixture(scope="module")
def mesh():
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    return Topology.parse("v5e:2x2").mesh(data=1, fsdp=2, tensor=2)


def shaped(mesh, shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, jax.P(*axes)))


def certificate(mesh, function, *args, **options):
    with jax.set_mesh(mesh):
        lowered = jax.jit(function).lower(*args)
    traced = Traced(lowered, flops=0.0, traffic=0.0, what="a test", **options)
    return certify("test", traced, mesh, Topology.parse("v5e:2x2"))


@pytest.mark.tpu_compile
def test_weights_gathered_in_a_loop_count_as_often_as_it_runs(mesh):
    def run(x, weights):
        def layer(x, part):
            whole = jax.lax.all_gather(part, "fsdp", axis=0, tiled=True)
            return jnp.tanh(x @ whole), None

        return jax.lax.scan(layer, x, weights)[0]

    each = jax.shard_map(
        run, mesh=mesh, in_specs=(jax.P("fsdp"), jax.P(None, "fsdp")), out_specs=jax.P("fsdp"),
        check_vma=False,
    )  # fmt: skip
    rows, weights = (ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)
    found = certificate(mesh, each, shaped(mesh, rows, "fsdp"), shaped(mesh, weights, None, "fsdp"))
    (row,) = found.by_kind()
    received = LAYERS * WIDTH * WIDTH * 2 // 2  # bf16, of which half is a chip's own
    assert (row["kind"], row["axes"], row["count"]) == ("all-gather", "fsdp", LAYERS)
    assert row["received"] == received
    speed = Topology.parse("v5e:2x2").speed(list(mesh.devices[0, :, 0]))
    assert found.network_s == pytest.approx(received / speed)
    assert found.fits and found.memory.arguments == (ROWS * WIDTH + LAYERS * WIDTH * WIDTH) * 2 // 2


@pytest.mark.tpu_compile
def test_sums_over_known_axes_have_their_bytes(mesh):
    def total(x, axes):
        return jax.lax.psum(x, axes)

    sums = {}
    for axes in (("fsdp",), ("tensor",), ("fsdp", "tensor")):
        each = jax.shard_map(
            functools.partial(total, axes=axes), mesh=mesh, in_specs=jax.P(), out_specs=jax.P(),
            check_vma=False,
        )  # fmt: skip
        (one,) = certificate(mesh, each, shaped(mesh, (ROWS, WIDTH))).collectives
        assert (one.kind, one.axes, one.size) == ("all-reduce", axes, ROWS * WIDTH * 2)
        sums[axes] = one
    half, most = (sums[axes].received for axes in (("fsdp",), ("fsdp", "tensor")))
    assert half == ROWS * WIDTH * 2 and most == half * 3 // 2
    # Four chips have a link in each of two dimensions, two chips have one.
    assert sums["fsdp", "tensor"].seconds == pytest.approx(most / (2 * CHIPS["v5e"].link))


@pytest.mark.tpu_compile
def test_gradients_between_slices_are_counted(mesh):
    """Summed inside a slice first, so that a chip sends its part alone."""
    topology = Topology.parse("2*v5e:2x2")
    two = topology.mesh(data=2)

    def gradient(x, w):
        grads = jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        return jax.lax.with_sharding_constraint(grads, NamedSharding(two, jax.P("fsdp")))

    rows = shaped(two, (ROWS, WIDTH), ("data", "fsdp"))
    with jax.set_mesh(two):
        lowered = jax.jit(gradient).lower(rows, shaped(two, (WIDTH, WIDTH), "fsdp"))
    found = certify("test", Traced(lowered, 0.0, 0.0, "a test"), two, topology)
    by_axes = {one.axes: one for one in found.collectives if one.kind != "all-gather"}
    assert set(by_axes) == {("fsdp",), ("data",)}
    between = by_axes["data",]
    assert (between.kind, between.size) == ("all-reduce", WIDTH * WIDTH * 2 // 4)
    assert between.seconds == pytest.approx(between.size / CHIPS["v5e"].network)


@pytest.mark.tpu_compile
def test_a_loop_whose_end_depends_on_data_is_counted_as_told(mesh):
    def run(x):
        def body(x):
            return jax.lax.psum(x, "tensor") * 0.25

        return jax.lax.while_loop(lambda x: jnp.max(x) > 1, body, x)

    each = jax.shard_map(run, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    x = shaped(mesh, (ROWS, WIDTH))
    untold = certificate(mesh, each, x)
    assert "loop of unknown length" in untold.unread and untold.network_s is None and untold.fits
    (one,) = certificate(mesh, each, x, open_loops=3).collectives
    assert one.count == 3


@pytest.mark.tpu_compile
def test_what_does_not_fit_is_told_with_its_bytes(mesh):
    size = (1 << 17, 1 << 17)  # 32 GiB
    found = certificate(mesh, lambda x: x @ x.T, shaped(mesh, size))
    assert found.memory is None and not found.fits and found.verdict == "does not fit"
    assert found.needed > CHIPS["v5e"].memory


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, to_apply=%add", [[0, 1], [2, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, to_apply=%add", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}, x=1", [[0, 2, 1, 3]]),
        ("source_target_pairs={{0,0},{2,1}}, metadata={}", [[0], [1, 2]]),
    ],
)
def test_groups_in_every_notation(text, groups):
    assert _groups(text, 4) == groups


TEXT = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %kernel = f32[8,4]{1,0} custom-call(%state), frontend_attributes={kernel_metadata={
"q": 1
}}, metadata={op_name="jit(step)/kernel"}
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%kernel), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add, metadata={op_name="jit(step)/sum"}
  %before = s32[] get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[] add(%before, %one)
  ROOT %tuple = (s32[], f32[8,4]) tuple(%next, %all-reduce.1)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %state = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x = (s32[], f32[8,4]) parameter(0)
  ROOT %while = (s32[], f32[8,4]) while(%x), condition=%condition, body=%body
}
"""  # noqa: E501


@pytest.mark.tpu_compile
def test_metadata_of_several_lines_ends_no_computation(mesh):
    (one,) = read_collectives(TEXT, mesh, Topology.parse("v5e:2x2"))
    assert (one.kind, one.axes, one.count, one.size) == ("all-reduce", ("tensor",), 7, 128)
    assert one.where == "jit(step)/sum"
    with pytest.raises(ValueError, match="no ENTRY"):
        read_collectives(TEXT.partition("ENTRY")[0], mesh, Topology.parse("v5e:2x2"))


@pytest.mark.tpu_compile
def test_a_counter_may_add_a_copy_of_its_step(mesh):
    """As in the 7B step on two slices, fully optimised."""
    text = TEXT.replace("add(%before, %one)", "add(%before, %copy)").replace(
        "  %next", "  %copy = s32[]{:T(128)} copy(%one), backend_config={}\n  %next"
    )
    (one,) = read_collectives(text, mesh, Topology.parse("v5e:2x2"))
    assert one.count == 7


@pytest.mark.tpu_compile
def test_a_reduce_scatter_of_its_own_is_told_by_the_part_that_is_left(mesh):
    """Most are fused with their slice; the text of those has the whole."""
    text = TEXT.replace("= f32[8,4]{1,0} all-reduce(", "= f32[4,4]{1,0} reduce-scatter(")
    (one,) = read_collectives(text, mesh, Topology.parse("v5e:2x2"))
    assert (one.kind, one.axes, one.count) == ("reduce-scatter", ("tensor",), 7)
    assert (one.size, one.received) == (128, 64)


def test_names_of_topologies():
    two = Topology.parse("2*v5e:4x4")
    assert (two.size, two.layout, str(two)) == (32, (4, 4), "2*v5e:4x4")
    for name, said in (
        ("v5e-8", "CHIP:LAYOUT"),
        ("v9:2x2", "there are v5e, v6e, v5p"),
        ("v5e:3x3", "4x8"),
        ("0*v5e:4x4", "CHIP:LAYOUT"),
    ):
        with pytest.raises(InputError, match=said):
            Topology.parse(name)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("sizes", [(1, 3, -1), (0, -1, 1), (2, 2, 2), (-1, -1, 1)])
def test_a_mesh_that_is_not_the_chips_is_refused(mesh, sizes):
    with pytest.raises(InputError, match="4 devices"):
        Topology.parse("v5e:2x2").mesh(*sizes)


@pytest.mark.tpu_compile
def test_axes_follow_the_torus_and_slices(mesh):
    """Two chips of a tensor axis are neighbours; what is inside `data` is of one slice."""
    made = Topology.parse("v5e:4x8").mesh(tensor=2)
    for pair in made.devices.reshape(-1, 2):
        one, other = (np.array(device.coords) for device in pair)
        assert np.abs(one - other).sum() == 1
    two = Topology.parse("2*v5e:4x4")
    made = two.mesh(data=2)
    assert [{d.slice_index for d in part.flat} for part in made.devices] == [{0}, {1}]
    with pytest.raises(InputError, match=r"let mesh\.data be 2"):
        two.mesh()


class _Device:
    def __init__(self, *coords, slice_index=0):
        self.coords, self.slice_index = coords, slice_index


def test_links_of_a_group():
    link, network = CHIPS["v5e"].link, CHIPS["v5e"].network
    ring, line = Topology.parse("v5e:16x16"), Topology.parse("v5e:4x8")
    row = [_Device(x, 0, 0) for x in range(4)]
    square = [_Device(x, y, 0) for x, y in np.ndindex(4, 4)]
    assert line.speed(row) == link and line.speed(square) == 2 * link
    assert ring.speed(row) == 2 * link and ring.speed(square) == 4 * link
    assert line.speed([_Device(0, 0, 0), _Device(0, 0, 0, slice_index=1)]) == network
