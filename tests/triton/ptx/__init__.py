"""The Triton kernels, executed and checked without a GPU.

Triton compiles for a GPU that is not there; what it would hand to the assembler, PTX, is a language
of some eighty instructions with a manual that says what each does. So a small interpreter in NumPy
runs the kernels as they are compiled, on CPU tensors, and sees every access that they make.

    driver.py        A backend of Triton whose binary is the PTX, and a driver whose device is this
                     interpreter. Binding, specialization and compilation are Triton's own.
    parse.py         PTX text -> basic blocks of instructions.
    semantics.py     What each arithmetic instruction computes, on arrays of one value a thread.
    threads.py       The threads of several blocks: registers, places, barriers.
    instructions.py  What an instruction does to them: branches, shuffles, loads and stores.
    execute.py       All threads in lockstep, in an order in which those that part meet again.
    memory.py        Global and shared memory, and the checks of each access.

A launch is many times slower than on a GPU, and quicker than it takes to compile: thousands of
threads share each NumPy call.

What it shows:

- The bits. Fused multiply-adds, roundings and conversions are exact, so noise and samples can be
  compared bit for bit with the C++ kernels.
- That each access lies within the tensor that its pointer came from, aligned to its size; that no
  thread reads a register or shared memory which nothing wrote; that between two threads' accesses
  to one place there is a barrier (or that they write the same); that barriers and shuffles are
  reached by all whom they wait for.
- Offsets past 2^31 elements, and the last programs of a huge grid: a tensor may be `sparse`, and
  `launches(only=...)` runs some of a grid's programs.

What it does not show: what the assembler (ptxas) makes of the PTX, for which tests/triton/compiled
looks into the machine code; the memory system beyond barriers (fences, atomics and asynchronous
copies are not known, and refused like every unknown instruction); the last bits of approximate
instructions, which it computes at full precision; the payload of a float64 NaN; and speed.
"""
