"""What CI reads of compiled kernels without a GPU: `python -m benchmarks.resources`, its parts."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import pytest

from benchmarks import access_widths, compiled_kernels, occupancy, resources

PLAIN = (
    "_ZN8spanbert6device33_GLOBAL__N__1c_7_cuda_cu_a51c2989"
    "18span_sample_kernelIlEEvNS_12SpanMaskArgsE"
)
SAMPLE = "_ZN8spanbert6device5entryINS0_12_GLOBAL__N_110SpanSampleIiEEEEvNS_12SpanMaskArgsE"
CHUNKS = "_ZN8spanbert6device5entryINS0_9SumChunksIfEEEEvNT_4ArgsE"

LOG = f"""[1/5] Building CUDA object cuda.cu.o
ptxas info    : 908 bytes gmem, 104 bytes cmem[4]
ptxas info    : Compiling entry function '{SAMPLE}' for 'sm_90'
ptxas info    : Function properties for {SAMPLE}
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 80 registers, used 0 barriers, 64 bytes cumulative stack size
ptxas info    : Compile time = 210.443 ms
ptxas info    : Compiling entry function '{CHUNKS}' for 'sm_90'
ptxas info    : Function properties for {CHUNKS}
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 2048 bytes smem
ptxas info    : Compile time = 5.1 ms
"""

PTX = f"""//
// Cuda compilation tools, release 13.0, V13.0.88
.version 9.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 _ZN4rowsE[];
	// .weak	{SAMPLE}
.weak .entry {SAMPLE}(
	.param .align 8 .b8 {SAMPLE}_param_0[2352]
)
.maxntid 128, 1, 1
.minnctapersm 4
{{
	mov.u32 	%r28, _ZN4rowsE;
	ret;
}}
.visible .entry {CHUNKS}(
	.param .align 8 .b8 {CHUNKS}_param_0[32]
)
.maxntid 32, 16, 1
{{
	ret;
}}
"""

ASSEMBLY = f"""	.target	sm_90
	.section	.text.{SAMPLE},"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0030*/               @P1 STG.E.128 desc[UR4][R2.64], R4 ;
        /*0040*/                   LDL.128 R4, [R1] ;
	.section	.text.{CHUNKS},"ax",@progbits
        /*0000*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0010*/                   LD.E R4, desc[UR4][R2.64] ;
        /*0020*/                   STG.E desc[UR4][R2.64], R4 ;
"""


@pytest.mark.parametrize(
    ("demangled", "label"),
    [
        (
            "void spanbert::device::entry<spanbert::device::SpanSample<int> >(Args)",
            "SpanSample<int>",
        ),
        (
            "void spanbert::device::entry<spanbert::device::(anonymous namespace)::RunningSums>"
            "(spanbert::device::(anonymous namespace)::RunningSums::Args)",
            "RunningSums",
        ),
        (
            "void spanbert::device::entry<spanbert::device::(anonymous namespace)::GeluLayerNorm<"
            "spanbert::device::bf16, spanbert::device::Packed<spanbert::device::Warp, 8, 4> > >"
            "(spanbert::device::GeluLayerNormArgs)",
            "GeluLayerNorm<bf16, Packed<Warp, 8, 4>>",
        ),
        (
            "void spanbert::device::(anonymous namespace)::bias_gradient_kernel<float, true>"
            "(spanbert::CrossEntropyArgs, unsigned int)",
            "bias_gradient_kernel<float, true>",
        ),
        (
            "spanbert::device::(anonymous namespace)::running_sums_kernel(long*, long)",
            "running_sums_kernel",
        ),
        ("void spanbert::device::entry<spanbert::Norm<(spanbert::Drop)2> >(int)", "Norm<(Drop)2>"),
    ],
)
def test_labels(demangled, label):
    assert compiled_kernels.label(demangled) == label


@pytest.mark.skipif(not shutil.which("c++filt"), reason="no c++filt (binutils) on this machine")
def test_labels_of_mangled_names():
    names = [SAMPLE, CHUNKS, PLAIN]
    assert list(compiled_kernels.labels(names).values()) == [
        "SpanSample<int>",
        "SumChunks<float>",
        "span_sample_kernel<long>",
    ]


def test_log_of_ptxas():
    assert compiled_kernels.read_log(LOG) == {
        (SAMPLE, "sm_90"): compiled_kernels.Used(80, 0, 0, 64, 0),
        (CHUNKS, "sm_90"): compiled_kernels.Used(32, 8, 12, 16, 2048),
    }


def test_a_log_that_is_not_understood():
    with pytest.raises(ValueError, match="0 kernels begin in the log"):
        compiled_kernels.read_log("[1/5] Building\n")
    cut = re.sub(r".*Used 80 registers.*\n", "", LOG)  # not to be filled from the kernel behind
    with pytest.raises(
        ValueError, match="2 kernels begin in the log and 1 of them were understood"
    ):
        compiled_kernels.read_log(cut)


def test_ptx():
    assert compiled_kernels.read_ptx(PTX) == {
        (SAMPLE, "sm_90"): compiled_kernels.Declared("13.0.88", 128, 4, True),
        (CHUNKS, "sm_90"): compiled_kernels.Declared("13.0.88", 512, 1, False),
    }
    with pytest.raises(ValueError, match=f"{CHUNKS} has no launch bounds"):
        compiled_kernels.read_ptx(PTX.replace(".maxntid 32, 16, 1\n", ""))


def test_widths_of_accesses():
    found = access_widths.read_assembly(ASSEMBLY)
    sample, chunks = found[SAMPLE, "sm_90"], found[CHUNKS, "sm_90"]
    assert sample == {("LDG", 128): 1, ("LDG", 64): 1, ("STG", 128): 1}
    assert chunks == {("LDG", 16): 1, ("LD", 32): 1, ("STG", 32): 1}
    assert access_widths.wide_share(sample) == pytest.approx(256 / 320)
    assert access_widths.wide_share(chunks) == 0
    assert access_widths.wide_share(Counter({("LDG", 32): 1, ("STG", 128): 9})) == 0  # no load does
    with pytest.raises(ValueError, match="does not name its architecture"):
        access_widths.read_assembly("")


def test_dynamic_shared_memory_at_base_shapes():
    """The launches' formulas written out: 256 bytes of reductions, then rows of 768."""
    for kernel, size in {
        "GeluLayerNorm<bf16, Strided<Warp>>": 256 + 4 * 768 * 4,
        "SboFirstLayer<double, Strided<Warp>>": 256 + 4 * 768 * 8,
        "GeluLayerNormBackward<float, Strided<Block<256>>>": 256 + 6 * 768 * 4,
        "GeluLayerNormBackward<bf16, Packed<Block<128>, 8, 1>>": 256,
        "SboFirstLayerBackward<bf16, Packed<Block<128>, 8, 1>>": 256 + 15 * 768 * 4,
        "AnyDropoutNorm<fp16, float>": 256 + 768 * 4 + 768 * 2,
        "AnyDropoutNormBackward<double, double>": 256 + 768 * 8 + 768 * 2,
    }.items():
        assert resources.dynamic_shared(kernel) == size, kernel
    with pytest.raises(
        ValueError, match="SpanSample<int> uses dynamic shared memory; add to DYNAMIC"
    ):
        resources.dynamic_shared("SpanSample<int>")


KERNEL = resources.Kernel(
    kernel="DropoutNorm<bf16, bf16>",
    architecture="sm_90",
    nvcc="13.0.88",
    registers=62,
    spill_stores=0,
    spill_loads=0,
    stack=0,
    static_shared=0,
    dynamic_shared=0,
    threads=128,
    blocks_asked=1,
    blocks_per_sm=8,
    occupancy=0.5,
    wide_share=0.97,
)
KERNELS = [
    KERNEL,
    replace(KERNEL, kernel="CrossEntropyRows<float, 12, true, true>"),
    replace(KERNEL, kernel="GeluLayerNorm<float, Packed<Warp, 4, 8>>"),
]


def test_kernels_without_faults():
    assert resources.faults(KERNELS) == []
    assert resources.losses(KERNELS, KERNELS) == []
    fewer = [replace(row, registers=40, occupancy=0.75) for row in KERNELS]
    assert resources.losses(fewer, KERNELS) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spill_stores": 8}, "spills: 8 bytes of stores, 0 of loads"),
        ({"spill_loads": 4}, "spills: 0 bytes of stores, 4 of loads"),
        ({"blocks_asked": 9}, "asks for 9 blocks a multiprocessor, and 8 fit"),
        ({"wide_share": 0.5}, "meant to move 16 bytes at a time, and does with 50% of its bytes"),
    ],
)
def test_faults(change, words):
    found = resources.faults([*KERNELS, replace(KERNEL, **change)])
    assert len(found) == 1 and f"{KERNEL.name} " in found[0] and words in found[0]
    if "blocks_asked" not in change:
        double = replace(KERNEL, kernel="CrossEntropyRows<double, 12, true, true>", **change)
        assert resources.faults([*KERNELS, double]) == []


def test_a_name_of_wide_kernels_that_is_nobodys():
    (found,) = resources.faults(KERNELS[:2])
    assert "no kernel is called" in found and "Packed" in found


@pytest.mark.parametrize(
    ("rows", "recorded", "words"),
    [
        (KERNELS, [], "nothing is recorded yet"),
        (KERNELS, KERNELS[1:], f"{KERNEL.name} is not in the table"),
        (KERNELS[1:], KERNELS, f"{KERNEL.name} is in the table and was not compiled"),
        (
            [replace(KERNEL, registers=81, blocks_per_sm=5, occupancy=0.3125)],
            [KERNEL],
            "keeps 31.2% of the warps, recorded are 50.0%: 81 registers",
        ),
        ([replace(KERNEL, wide_share=0.72)], [KERNEL], "moves 72% of its bytes 16 at a time"),
    ],
)
def test_losses_against_the_table(rows, recorded, words):
    found = resources.losses(rows, recorded)
    assert words in found[0]
    assert resources.RECORD in found[-1]


def test_architectures_that_were_not_compiled_are_not_missed():
    assert resources.losses(KERNELS, [*KERNELS, replace(KERNEL, architecture="sm_120")]) == []


def test_widths_are_compared_where_both_were_read():
    blind = [replace(row, wide_share=None) for row in KERNELS]
    assert resources.faults(blind) == []
    assert resources.losses(blind, KERNELS) == resources.losses(KERNELS, blind) == []


def test_the_table_comes_back_as_it_was_written(tmp_path):
    rows = [*KERNELS, replace(KERNEL, architecture="sm_80", wide_share=None)]
    resources.write_table(tmp_path / "table.csv", rows)
    assert resources.read_table(tmp_path / "table.csv") == rows
    assert resources.read_table(tmp_path / "none.csv") == []
    (tmp_path / "old.csv").write_text("kernel,registers\n")
    with pytest.raises(ValueError, match="old.csv has other columns"):
        resources.read_table(tmp_path / "old.csv")


def test_the_recorded_table():
    """Its rows agree with themselves and have no faults; a build is compared with them in CI."""
    rows = resources.read_table(resources.RESULTS)
    assert rows and resources.faults(rows) == []
    for row in rows:
        shared = row.static_shared + row.dynamic_shared
        shape = (row.architecture, row.registers, row.threads, shared)
        assert row.blocks_per_sm == occupancy.blocks_per_sm(*shape), row.name
        assert row.occupancy == round(occupancy.occupancy(*shape), 4), row.name


@pytest.mark.skipif(not shutil.which("c++filt"), reason="no c++filt (binutils) on this machine")
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resources, "RESULTS", tmp_path / "table.csv")
    monkeypatch.setattr(resources, "WIDE", ())
    monkeypatch.setattr(resources, "DYNAMIC", ((r"SpanSample", lambda value: 10),))
    monkeypatch.setattr(access_widths, "find_disassembler", lambda: None)
    log, kernels = tmp_path / "log", tmp_path / "kernels"
    kernels.mkdir()
    log.write_text(LOG)
    command = [str(log), str(kernels)]
    assert resources.main(command) == 1
    assert f"has no PTX of {SAMPLE} for sm_90" in capsys.readouterr().out
    (kernels / "cuda.compute_90.ptx").write_text(PTX)
    assert resources.main([*command, "--record"]) == 1
    text = capsys.readouterr().out
    assert "SumChunks<float> (sm_90) spills: 8 bytes of stores, 12 of loads" in text
    assert "the disassembler is not here: widths of loads were not checked; pip install" in text

    log.write_text(LOG.replace("8 bytes spill stores, 12", "0 bytes spill stores, 0"))
    assert resources.main([*command, "--record"]) == 0
    sample, chunks = resources.read_table(resources.RESULTS)
    assert (sample.kernel, sample.dynamic_shared, sample.occupancy) == (
        "SpanSample<int>",
        266,
        0.375,
    )
    # 512 threads of 32 registers: four blocks, all of the 64 warps.
    assert (chunks.kernel, chunks.threads, chunks.occupancy) == ("SumChunks<float>", 512, 1.0)
    assert resources.main(command) == 0
    capsys.readouterr()

    log.write_text(log.read_text().replace("Used 80 registers", "Used 88 registers"))
    assert resources.main(command) == 1
    assert "SpanSample<int> (sm_90) keeps 31.2% of the warps" in capsys.readouterr().out
    (kernels / "cuda.compute_90.ptx").write_text(PTX.replace("V13.0.88", "V12.4.131"))
    assert resources.main(command) == 0
    assert "nvcc 12.4.131 is not that of the table, 13.0.88" in capsys.readouterr().out


def test_the_disassembler_reads_what_nvcc_made(tmp_path):
    """One load of 16 bytes and a store of 4, compiled and read back."""
    if not shutil.which("nvcc") or not access_widths.find_disassembler():
        pytest.skip("no nvcc or no nvdisasm on this machine")
    (tmp_path / "one.cu").write_text(
        'extern "C" __global__ void __launch_bounds__(64, 2) one(const int4* in, int* out) {\n'
        "  const int4 x = in[threadIdx.x];\n  out[threadIdx.x] = x.x + x.y + x.z + x.w;\n}\n"
    )
    command = ["nvcc", "-arch=sm_90", "-cubin", "one.cu", "--keep"]
    subprocess.run(command, cwd=tmp_path, check=True)
    shares = access_widths.read_cubins(tmp_path)
    assert shares == {("one", "sm_90"): pytest.approx(128 / 160)}
    declared = compiled_kernels.read_ptx((tmp_path / "one.ptx").read_text())["one", "sm_90"]
    assert (declared.threads, declared.blocks_asked, declared.is_dynamic) == (64, 2, False)
