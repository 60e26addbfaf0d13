"""Kernels keep to their budgets of executed instructions, counted in the machine code."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")

from tests.backends import interpreted  # noqa: E402
from tests.triton.compiled.budgets import PAGE, ROWS, budgets, count, page  # noqa: E402
from tests.triton.compiled.launches import cuobjdump  # noqa: E402
from tests.triton.compiled.sass import Code  # noqa: E402

VERSION, BUDGETS = budgets()
COMMAND = "`python -m tests.triton.compiled.budgets` writes the new counts"
# The same compiler gives the same code. Half an instruction for each element is more than another
# order of statements costs a thread in addresses and copies, and less than one operation more.
SLACK = 0.5
# Registers are dealt to the threads of a warp by eights.
REGISTERS = 8


@interpreted
@pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump")
@pytest.mark.skipif(
    triton.__version__ != VERSION, reason=f"the budgets are of the code by Triton {VERSION}"
)
@pytest.mark.parametrize("name", ROWS)
def test_kernel_keeps_to_its_budget(name: str) -> None:
    found, budget = count(ROWS[name]), BUDGETS[name]
    rest = found._replace(instructions=budget.instructions, registers=budget.registers)
    assert rest == budget, f"other barriers, accesses or spills; if meant so, {COMMAND}"
    for kind, is_, was, slack in (
        ("instructions", found.instructions, budget.instructions, SLACK),
        ("registers", found.registers, budget.registers, REGISTERS),
    ):
        assert is_ <= was + slack, f"{is_} {kind} where the budget is {was}"
        assert is_ >= was - slack, f"{is_} {kind}: better than the budget of {was}; {COMMAND}"


def test_the_page_has_the_budgets() -> None:
    assert list(BUDGETS) == list(ROWS)
    assert PAGE.read_text(encoding="utf-8") == page(VERSION, BUDGETS), COMMAND


# A root with its slow path, in a loop; then an if and its else.
CODE = """
    /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
                                                           /* 0x000fe20000000800 */
    /*0010*/               @P0 LDG.E.128 R12, desc[UR10][R24.64] ;
    /*0020*/                   LDG.E.U16 R16, desc[UR10][R26.64] ;
    /*0030*/                   BSSY B0, 0x90 ;
    /*0040*/              @!P3 BRA 0x80 ;
    /*0050*/                   MOV R60, 0x70 ;
    /*0060*/                   CALL.REL.NOINC 0x140 ;
    /*0070*/                   BRA 0x88 ;
    /*0080*/                   FMUL.FTZ R4, R5, R6 ;
    /*0088*/                   BSYNC B0 ;
    /*0090*/                   STG.E.64 desc[UR10][R60.64], R28 ;
    /*00a0*/               @P2 BRA 0x30 ;
    /*00b0*/                   BRA.DIV ~URZ, 0x160 ;
    /*00c0*/               @P1 BRA 0xf0 ;
    /*00d0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
    /*00e0*/                   BRA 0x100 ;
    /*00f0*/                   FADD R1, R2, R3 ;
    /*0100*/              @!P0 EXIT ;
    /*0110*/                   STG.E desc[UR10][R4.64], R7 ;
    /*0120*/                   STG.E desc[UR10][R4.64+0x4], R8 ;
    /*0130*/                   EXIT ;
    /*0140*/                   MUFU.RSQ R4, R5 ;
    /*0150*/                   RET.REL.NODEC R60 0x0 ;
    /*0160*/                   BRA 0x160;
    /*0170*/                   NOP;
"""


def test_what_is_counted() -> None:
    code = Code(CODE)
    assert len(code.instructions) == 25
    assert set(code.instructions) - code.hot == {0x50, 0x60, 0x70, 0x140, 0x150, 0x160, 0x170}
    assert code.loop() == {0x30, 0x40, 0x80, 0x88, 0x90, 0xA0}
    assert code.accesses("LDG", code.hot) == "1x128 1x16"
    assert code.accesses("STG", code.hot) == "1x64 2x32"
    assert code.accesses("STG", code.loop()) == "1x64"
    assert code.count("BAR", code.hot) == 1
    assert code.count("BAR", code.loop()) == 0


def test_of_two_loops_the_inner_one_counts() -> None:
    code = Code(
        "/*00*/ NOP ; /*10*/ FADD R1, R1, R2 ; /*20*/ @P0 BRA 0x10 ; /*30*/ @P1 BRA 0x0 ;"
        "/*40*/ EXIT ;".replace("/*", "/*00")
    )
    assert code.loop() == {0x10, 0x20}


def test_code_without_a_loop() -> None:
    code = Code("/*0000*/ FADD R1, R1, R2 ; /*0010*/ EXIT ;")
    assert code.loop() == set()
    assert len(code.hot) == 2
    assert code.accesses("LDG", code.hot) == ""


def test_a_call_on_every_way_is_refused() -> None:
    with pytest.raises(AssertionError, match="does not end without a call"):
        Code("/*0000*/ CALL.REL.NOINC 0x20 ; /*0010*/ EXIT ; /*0020*/ RET.REL.NODEC R2 0x0 ;")


def test_jumps_by_a_table_are_refused() -> None:
    with pytest.raises(AssertionError, match="unknown control flow"):
        Code("/*0000*/ BRX R2 -0x10 ; /*0010*/ EXIT ;")
