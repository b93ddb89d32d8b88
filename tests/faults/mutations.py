"""Takes guards out of a copy of the package, one at a time: the test that stands for each has to fail. Not collected.

    python tests/faults/mutations.py [WORD ...]      all, or those with one of these words in their name

A text that does not stand in its file exactly once is an error: the guard has moved, and this list with it. Exit code 1
when a mutation survives, or a test fails without any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tastemaker"


class Mutation(NamedTuple):
    """A guard, what takes it out, and the test that stands for it."""

    name: str
    file: str
    old: str
    new: str
    test: str


CHECKPOINTS, TRAINING = "tests/faults/test_checkpoint_faults.py", "tests/training/test_trainer.py"
SERVERS = "tests/faults/test_reward_servers.py"
MUTATIONS = [
    Mutation(
        "sums of a checkpoint's files are compared",
        "training/checkpoint.py",
        'if sums and _sum(path / name) != files[name]["sha256"]:',
        "if False:",
        f"{CHECKPOINTS}::test_a_damaged_file_is_named_and_the_checkpoint_before_is_used",
    ),
    Mutation(
        "a manifest names files of a checkpoint alone",
        "training/checkpoint.py",
        "if strange := [name for name in files if not _FILE.fullmatch(name)]:",
        "if strange := []:",
        f"{CHECKPOINTS}::test_a_manifest_cannot_point_out_of_its_folder",
    ),
    Mutation(
        "a checkpoint is sealed before it bears its name",
        "training/checkpoint.py",
        "        temporary.rename(final)\n        _flush(self.folder)",
        "        (temporary / MANIFEST).unlink()\n        temporary.rename(final)\n        _seal(final)",
        f"{CHECKPOINTS}::test_killed_anywhere_in_a_save_a_whole_checkpoint_is_the_latest",
    ),
    Mutation(
        "what is replaced is put aside, not removed",
        "training/checkpoint.py",
        "            final.rename(aside)\n        temporary.rename(final)",
        "            shutil.rmtree(final)\n        temporary.rename(final)",
        f"{CHECKPOINTS}::test_killed_anywhere_in_a_save_a_whole_checkpoint_is_the_latest",
    ),
    Mutation(
        "files are flushed to the disk",
        "training/checkpoint.py",
        "        os.fsync(handle)",
        "        pass",
        f"{CHECKPOINTS}::test_a_full_disk_leaves_what_was_there_and_says_what_it_needs",
    ),
    Mutation(
        "two checkpoints are kept at least",
        "training/checkpoint.py",
        "if limit is not None and limit < 2:",
        "if limit is not None and limit < 1:",
        "tests/training/test_checkpoint.py::test_one_checkpoint_is_no_reserve",
    ),
    Mutation(
        "a damaged checkpoint is no reserve",
        "training/checkpoint.py",
        "[path for path in others if not _problem(path, sums=False)]",
        "list(others)",
        "tests/training/test_checkpoint.py::test_a_damaged_checkpoint_does_not_push_a_whole_one_out",
    ),
    Mutation(
        "damaged checkpoints alone begin no new run",
        "training/checkpoint.py",
        '    if found:\n        raise ValueError(\n            f"none of',
        '    if False:\n        raise ValueError(\n            f"none of',
        f"{CHECKPOINTS}::test_a_run_does_not_begin_from_nothing_when_all_are_damaged",
    ),
    Mutation(
        "the lock of the output folder",
        "folder.py",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/faults/test_resuming.py::test_a_second_process_is_refused_and_a_dead_ones_lock_is_none",
    ),
    Mutation(
        "room for one checkpoint",
        "provision.py",
        "if disk.total and disk.free < needed:",
        "if False:",
        "tests/faults/test_disks.py::test_a_disk_without_room_for_one_checkpoint_is_refused_before_anything_is_made",
    ),
    Mutation(
        "a resumed run has the model and the reward it had",
        "planning.py",
        "        if found != value:",
        "        if False:",
        "tests/faults/test_resuming.py::test_what_a_run_is_made_of_does_not_change",
    ),
    Mutation(
        "weights are read without code",
        "rewards/weights.py",
        "weights_only=True",
        "weights_only=False",
        "tests/rewards/test_weights.py::test_a_file_that_would_run_code_is_refused",
    ),
    Mutation(
        "no step on a gradient that is not finite",
        "training/optimizer.py",
        "taken = math.isfinite(length)",
        "taken = True",
        "tests/faults/test_numbers.py::test_no_number_that_is_not_finite_reaches_a_weight",
    ),
    Mutation(
        "five skipped steps in a row end a run",
        "training/trainer.py",
        "if self.optimizer.consecutive_skips >= PATIENCE:",
        "if False:",
        f"{TRAINING}::test_five_in_a_row_end_the_run_with_the_last_good_weights",
    ),
    Mutation(
        "gradients are cut to a length",
        "training/optimizer.py",
        "if self.settings.max_grad_norm is not None:",
        "if False:",
        "tests/faults/test_numbers.py::test_a_spike_is_cut_to_the_norm_that_is_allowed_and_noted",
    ),
    Mutation(
        "a failed score is no 0",
        "rewards/reward.py",
        "value = torch.where(value.isfinite(), value, torch.nan)",
        "value = value.nan_to_num(0.0)",
        "tests/rewards/test_reward.py::test_score_masks_and_never_gives_zero",
    ),
    Mutation(
        "pictures without a score are not learned from",
        "rollout.py",
        "wanted = self.credit.isfinite()[:, None].expand_as(self.steps)",
        "wanted = torch.ones_like(self.steps, dtype=torch.bool)",
        f"{TRAINING}::test_failed_scores_leave_the_batch_as_if_their_pictures_were_absent",
    ),
    Mutation(
        "too many failed scores end a run",
        "training/trainer.py",
        "if failed > self.max_failed * asked:",
        "if False:",
        f"{TRAINING}::test_too_many_failed_scores_end_the_run_with_a_checkpoint_to_go_on_from",
    ),
    Mutation(
        "scores follow their pictures in another order",
        "rewards/reward.py",
        "order = _apart(value, _try(judge, images.flip(0), prompts.take(backwards)).value.flip(0))",
        "order = 0.0",
        "tests/properties/test_contracts.py::test_a_function_of_the_place_or_the_company_is_refused",
    ),
    Mutation(
        "keys among the settings are taken out",
        "reports/secrets.py",
        "return found if plain else REMOVED",
        "return found",
        "tests/faults/test_surroundings.py::test_a_key_on_the_command_line_is_in_config_yaml_alone",
    ),
    Mutation(
        "a server's words are told without the token",
        "rewards/transport.py",
        'text.replace(self._secret, "***") if self._secret else text',
        "text",
        f"{SERVERS}::test_a_refusal_is_not_asked_again_and_names_its_cause",
    ),
    Mutation(
        "a server is asked so often and no more",
        "rewards/transport.py",
        "while asked < most and (address :=",
        "while (address :=",
        f"{SERVERS}::test_tries_and_deadline_bound_the_patience",
    ),
    Mutation(
        "pages are shown under this machine's own name",
        "reports/loopback.py",
        'if host in (HOST, "localhost"):',
        "if True:",
        "tests/reports/test_live.py::test_other_names_of_this_machine_are_refused",
    ),
    Mutation(
        "all ranks were asked for the same",
        "agreement.py",
        "    if found:\n",
        "    if False:\n",
        "tests/faults/test_processes.py::test_ranks_that_were_asked_for_other_things_do_not_begin",
    ),
    Mutation(
        "the text of a reward's file is compared",
        "agreement.py",
        "for name, found in fingerprint.of_files(settings).items()}",
        "for name, found in ()}",
        "tests/faults/test_processes.py::test_ranks_whose_files_code_or_weights_differ_do_not_begin",
    ),
    Mutation(
        "the best checkpoints stand best first",
        "training/best.py",
        'key=lambda one: -one["value"]',
        'key=lambda one: one["value"]',
        "tests/training/test_watching.py::test_so_many_of_the_best_are_kept_best_first",
    ),
    Mutation(
        "what an ordinary checkpoint lists as the best stays on the disk",
        "training/best.py",
        "wanted = self._needed | self._places()",
        "wanted = self._places()",
        "tests/training/test_watching.py::test_a_run_that_goes_back_has_the_best_of_that_time",
    ),
    Mutation(
        "old checkpoints go after the new one has come",
        "training/checkpoint.py",
        '        aside = final.with_name(f".old-{final.name}")',
        "        for _, path in _found(self.folder):\n            remove(path)\n"
        '        aside = final.with_name(f".old-{final.name}")',
        f"{CHECKPOINTS}::test_killed_anywhere_in_a_save_a_whole_checkpoint_is_the_latest",
    ),
    Mutation(
        "a resume that is not exact says so",
        "training/footing.py",
        "    if not changed:",
        "    if True:",
        "tests/faults/test_resuming.py::test_a_resume_that_is_not_exact_says_what_changed",
    ),
    Mutation(
        "an optimizer's moments are all there",
        "training/optimizer.py",
        'if lacking and counts["updates"] > counts["skipped"]:',
        "if False:",
        "tests/training/test_optimizer.py::test_a_lost_moment_is_refused_by_name",
    ),
]


def mutated(text: str, one: Mutation) -> str:
    """The file without the guard. Errors: SystemExit where its text is not there exactly once."""
    if text.count(one.old) != 1:
        raise SystemExit(f"{one.name}: {one.old!r} stands {text.count(one.old)} times in {one.file}; needed is once.")
    return text.replace(one.old, one.new)


def tested(home: Path, tests: list[str]) -> int:
    """pytest's exit code on tests that import the package of this folder."""
    environment = os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    where = "import tastemaker, sys; sys.exit(not tastemaker.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", where, str(home)], env=environment, check=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu and not browser",
        *tests,
    ]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True).returncode


def main(words: list[str]) -> int:
    chosen = [one for one in MUTATIONS if not words or any(word in one.name for word in words)]
    texts = {one: mutated((PACKAGE / one.file).read_text(encoding="utf-8"), one) for one in chosen}
    with tempfile.TemporaryDirectory(prefix="tastemaker-mutations-") as folder:
        home = Path(folder)
        shutil.copytree(PACKAGE, home / "tastemaker", ignore=shutil.ignore_patterns("__pycache__"))
        if code := tested(home, list(dict.fromkeys(one.test for one in chosen))):
            print(f"the tests fail without any mutation (pytest's exit code {code})")
            return 1
        survived = 0
        for one, text in texts.items():
            file, began = home / "tastemaker" / one.file, time.monotonic()
            whole = file.read_text(encoding="utf-8")
            file.write_text(text, encoding="utf-8")
            code = tested(home, [one.test])
            file.write_text(whole, encoding="utf-8")
            survived += code != 1
            verdict = {0: "SURVIVED", 1: "found"}.get(code, f"NO TEST RAN ({code})")
            print(f"{verdict:<9} {time.monotonic() - began:5.0f} s  {one.name:<52} {one.test}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} mutations are found by their test")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
