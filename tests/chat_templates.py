"""Chat templates in the common forms, written here after their models' documented formats."""

ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
SYSTEM_APART = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set talk = messages[1:] %}{% else %}{% set system = none %}{% set talk = messages %}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORMS = {
    "chatml": CHATML,
    "chatml-default-system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        + CHATML
    ),
    "llama2": (
        f"{SYSTEM_APART}{{% for message in talk %}}{ALTERNATE}"
        "{% set content = message.content %}{% if loop.first and system is not none %}"
        "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}{% endif %}"
        "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "gemma": (
        f"{{{{ bos_token }}}}{SYSTEM_APART}{{% for message in talk %}}{ALTERNATE}"
        "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
        "{% if loop.first and system is not none %}{{ system + '\\n\\n' }}{% endif %}"
        "{{ message.content | trim }}"
        "{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}\n{{ '<|' + m.role + '|>\\n' + m.content + eos_token }}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "thoughts": (
        "{% for m in messages %}{% set c = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in c %}"
        "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}<|im_start|>assistant\n"
    ),
}
# Like llama2, but an empty system text is none: the form leaves system texts out.
EMPTY_SYSTEM = FORMS["llama2"].replace("system is not none", "system")
# What depends on more than the roles of neighbours.
NO_FORMS = {
    "counts": "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",
    "date": "{{ strftime_now('%Y') }}" + CHATML,
    "upper": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "length": CHATML + "{{ messages | length }}",
    "odd contents": "{% for m in messages %}{{ m.content or 'nothing' }}{% endfor %}",
    "fails": "{{ raise_exception('no') }}",
    "broken": "{% if %}",
}
