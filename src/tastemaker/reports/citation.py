"""Citations in BibTeX: of the papers that an algorithm's file names in its first line, and of this software."""

# The spelling of a paper in a docstring -> its entry.
PAPERS = {
    "arXiv:2305.13301": """@inproceedings{black2024training,
  title     = {Training Diffusion Models with Reinforcement Learning},
  author    = {Black, Kevin and Janner, Michael and Du, Yilun and Kostrikov, Ilya and Levine, Sergey},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2305.13301}
}""",
    "arXiv:2309.17400": """@inproceedings{clark2024directly,
  title     = {Directly Fine-Tuning Diffusion Models on Differentiable Rewards},
  author    = {Clark, Kevin and Vicol, Paul and Swersky, Kevin and Fleet, David J.},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2309.17400}
}""",
    "arXiv:2310.03739": """@misc{prabhudesai2023aligning,
  title  = {Aligning Text-to-Image Diffusion Models with Reward Backpropagation},
  author = {Prabhudesai, Mihir and Goyal, Anirudh and Pathak, Deepak and Fragkiadaki, Katerina},
  year   = {2023},
  note   = {arXiv:2310.03739}
}""",
    "arXiv:2304.05977": """@inproceedings{xu2023imagereward,
  title     = {{ImageReward}: Learning and Evaluating Human Preferences for Text-to-Image Generation},
  author    = {Xu, Jiazheng and Liu, Xiao and Wu, Yuchen and Tong, Yuxuan and Li, Qinkai and Ding, Ming and Tang, Jie
               and Dong, Yuxiao},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2304.05977}
}""",
    "arXiv:2405.00760": """@inproceedings{wu2024deep,
  title     = {Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models},
  author    = {Wu, Xiaoshi and Hao, Yiming and Zhang, Manyuan and Sun, Keqiang and Huang, Zhaoyang and Song, Guanglu
               and Liu, Yu and Li, Hongsheng},
  booktitle = {European Conference on Computer Vision},
  year      = {2024},
  note      = {arXiv:2405.00760}
}""",
    "arXiv:2603.12893": """@misc{mcallister2026finite,
  title  = {Finite Difference Flow Optimization for {RL} Post-Training of Text-to-Image Models},
  author = {McAllister, David and Aittala, Miika and Karras, Tero and Hellsten, Janne and Kanazawa, Angjoo and
            Aila, Timo and Laine, Samuli},
  year   = {2026},
  note   = {arXiv:2603.12893}
}""",
    "arXiv:2311.12908": """@inproceedings{wallace2024diffusion,
  title     = {Diffusion Model Alignment Using Direct Preference Optimization},
  author    = {Wallace, Bram and Dang, Meihua and Rafailov, Rafael and Zhou, Linqi and Lou, Aaron and Purushwalkam,
               Senthil and Ermon, Stefano and Xiong, Caiming and Joty, Shafiq and Naik, Nikhil},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2311.12908}
}""",
    "arXiv:2302.12192": """@misc{lee2023aligning,
  title  = {Aligning Text-to-Image Models using Human Feedback},
  author = {Lee, Kimin and Liu, Hao and Ryu, Moonkyung and Watkins, Olivia and Du, Yuqing and Boutilier, Craig and
            Abbeel, Pieter and Ghavamzadeh, Mohammad and Gu, Shixiang Shane},
  year   = {2023},
  note   = {arXiv:2302.12192}
}""",
    "arXiv:2509.16117": """@misc{zheng2025diffusionnft,
  title  = {{DiffusionNFT}: Online Diffusion Reinforcement with Forward Process},
  author = {Zheng, Kaiwen and Chen, Huayu and Ye, Haotian and Wang, Haoxiang and Zhang, Qinsheng and Jiang, Kai and
            Su, Hang and Ermon, Stefano and Zhu, Jun and Liu, Ming-Yu},
  year   = {2025},
  note   = {arXiv:2509.16117}
}""",
    "arXiv:2509.25050": """@misc{xue2025advantage,
  title  = {Advantage Weighted Matching: Aligning {RL} with Pretraining in Diffusion Models},
  author = {Xue, Shuchen and Ge, Chongjian and Zhang, Shilong and Li, Yichen and Ma, Zhi-Ming},
  year   = {2025},
  note   = {arXiv:2509.25050}
}""",
    "arXiv:2605.10759": """@misc{bergmeister2026reinforce,
  title  = {Reinforce Adjoint Matching: Scaling {RL} Post-Training of Diffusion and Flow-Matching Models},
  author = {Bergmeister, Andreas and Jegelka, Stefanie and N{\\"u}sken, Nikolas and Domingo-Enrich, Carles and
            Pidstrigach, Jakiw},
  year   = {2026},
  note   = {arXiv:2605.10759}
}""",
    "arXiv:2305.16381": """@inproceedings{fan2023dpok,
  title     = {{DPOK}: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models},
  author    = {Fan, Ying and Watkins, Olivia and Du, Yuqing and Liu, Hao and Ryu, Moonkyung and Boutilier, Craig and
               Abbeel, Pieter and Ghavamzadeh, Mohammad and Lee, Kangwook and Lee, Kimin},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2305.16381}
}""",
    "arXiv:2505.05470": """@misc{liu2025flowgrpo,
  title  = {{Flow-GRPO}: Training Flow Matching Models via Online {RL}},
  author = {Liu, Jie and Liu, Gongye and Liang, Jiajun and Li, Yangguang and Liu, Jiaheng and Wang, Xintao and
            Wan, Pengfei and Zhang, Di and Ouyang, Wanli},
  year   = {2025},
  note   = {arXiv:2505.05470}
}""",
    "Williams 1992": """@article{williams1992simple,
  title   = {Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning},
  author  = {Williams, Ronald J.},
  journal = {Machine Learning},
  volume  = {8},
  pages   = {229--256},
  year    = {1992},
  doi     = {10.1007/BF00992696}
}""",
}


def papers(text: str) -> list[str]:
    """The entries of all papers that a text names, in the order in which it does."""
    named = sorted((text.index(spelling), entry) for spelling, entry in PAPERS.items() if spelling in text)
    return [entry for _, entry in named]


def software(version: str) -> str:
    """The entry of Tastemaker itself, as CITATION.cff has it."""
    return f"""@software{{tastemaker,
  title   = {{Tastemaker: reward fine-tuning of text-to-image diffusion models}},
  author  = {{{{The Tastemaker authors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""
