"""An exported folder on a hub, as it lies; anybody then loads it by timm's "hf-hub:YOU/NAME".

python examples/push_to_hub.py runs/mine/export/encoder-timm YOU/NAME
"""

import sys

from huggingface_hub import HfApi

folder, repository = sys.argv[1:]
api = HfApi()
api.create_repo(repository, private=True, exist_ok=True)
print(api.upload_folder(folder_path=folder, repo_id=repository))
print(f'timm.create_model("hf-hub:{repository}", pretrained=True)')
