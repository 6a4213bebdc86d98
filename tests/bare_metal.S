/* The ROM of a PC: from reset to 64-bit mode, the first disk into memory, and on to `boot`.
 *
 * It is linked with the program but lies in no segment: bochs.py takes it out, and writes `cylinders`
 * and `operands`, its first words. Everything in it is addressed from ROM, where it ends at 4 GiB.
 */
    .set    ROM, 0xffffd000
    .set    PROGRAM, 1 << 20
    .set    STACK, 64 << 20             /* grows down from here; bare_metal.c gives memory from here up */

    .section .rom, "", @progbits
rom:
cylinders:                              /* of 256 sectors, to be read */
    .long   0
operands:                               /* address to hand over */
    .long   0
descriptor:
    .word   15
    .long   ROM + descriptors - rom
    .balign 8
descriptors:
    .quad   0, 0x00af9b000000ffff
    .org    0x1000
level4:
    .quad   ROM + level3 - rom + 0x23
    .org    0x2000
level3:                                 /* pages of 1 GiB: the first, and the one that ends with the ROM */
    .quad   0x000000e3, 0, 0, 0xc00000e3

    .org    0x2e00
    .code16
real:
    lgdtl   %cs:(ROM & 0xffff) + descriptor - rom
    mov     $0x40620, %eax              /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
    mov     %eax, %cr4
    mov     $(ROM + level4 - rom), %eax
    mov     %eax, %cr3
    mov     $0xc0000080, %ecx           /* EFER: long mode */
    mov     $0x100, %eax
    xor     %edx, %edx
    wrmsr
    mov     $0x80000033, %eax           /* paging, protection, the coprocessor's errors */
    mov     %eax, %cr0
    ljmpl   $8, $(ROM + long - rom)

    .code64
long:
    mov     $STACK, %esp
    xor     %ecx, %ecx                  /* XCR0: x87, SSE, AVX, and the three parts of AVX-512 */
    xor     %edx, %edx
    mov     $0xe7, %eax
    xsetbv
    fninit
    mov     $PROGRAM, %edi
    xor     %ebx, %ebx
cylinder:
    mov     $0x1f2, %edx                /* ATA: 256 sectors from sector 256 * ebx */
    xor     %eax, %eax
    outb    %al, %dx
    inc     %edx
    outb    %al, %dx
    inc     %edx
    mov     %ebx, %eax
    outb    %al, %dx
    inc     %edx
    xor     %eax, %eax
    outb    %al, %dx
    inc     %edx
    mov     $0xe0, %al
    outb    %al, %dx
    inc     %edx
    mov     $0x20, %al                  /* read, retrying */
    outb    %al, %dx
    mov     $256, %esi
sector:
    mov     $0x1f7, %edx
    inb     %dx, %al
    and     $0x89, %al                  /* busy, data, error */
    cmp     $0x01, %al
    je      failed
    cmp     $0x08, %al
    jne     sector
    mov     $0x1f0, %edx
    mov     $256, %ecx
    rep insw
    dec     %esi
    jnz     sector
    inc     %ebx
    cmp     %ebx, cylinders(%rip)
    jne     cylinder
    mov     operands(%rip), %edi
    mov     $boot, %eax
    call    *%rax
failed:
    ud2

    .org    0x2ff0
    .code16
    jmp     real
    .org    0x3000
