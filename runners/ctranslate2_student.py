"""Convert a student for CTranslate2, whatever the size of its heads.

`python ctranslate2_student.py --model STUDENT --output_dir FOLDER`, with the options of `ct2-transformers-converter`,
whose loader of Llama takes hidden_size / num_attention_heads for the size of a head. Where heads or channels were
pruned it is another one, which config.json says.
"""

from typing import Any

import numpy as np
from ctranslate2.converters import transformers


class LlamaWithHeadsOfAnySize(transformers.LlamaLoader):  # type: ignore[misc]  # ctranslate2 has no types
    """CTranslate2's loader of Llama, which also tells how large a head is."""

    def get_model_spec(self, model: Any) -> Any:
        """Return what CTranslate2 is to compute.

        Args:
            model: As transformers has loaded it.
        """
        spec = super().get_model_spec(model)
        for layer in spec.decoder.layer:
            vars(layer.self_attention)["head_dim"] = np.int32(model.config.head_dim)  # which it lacks unless it is told
        return spec


transformers.register_loader("LlamaConfig")(LlamaWithHeadsOfAnySize)

if __name__ == "__main__":
    transformers.main()
