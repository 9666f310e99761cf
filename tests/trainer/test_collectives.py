"""Collectives of a program's text, loops and branches included."""

from gatokit.trainer.collectives import Collectives, find_collectives

MODULE = """HloModule jit__step

%body.1 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[]{:T(256)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %gather = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %both = (f32[4]{0}, f32[2,2]{1,0}) all-reduce(%a, %b), channel_id=2, replica_groups={{0,1},{2,3}}, to_apply=%sum
}

%condition.1 (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(256)} constant(24)
  %at = s32[]{:T(256)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(1024)} compare(%at, %limit), direction=LT
}

%body.2 (q: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %max = f32[512]{0} all-reduce(%c), channel_id=3, replica_groups=[4,2]<=[8], to_apply=%largest
}

%condition.2 (q: (s32[], s32[])) -> pred[] {
  ROOT %lt.2 = pred[] compare(%first, %second), direction=LT
}

%body.3 (r: (s32[])) -> (s32[]) {
  %inner = (s32[], f32[4,8]) while(%t), condition=%condition.1, body=%body.1
}

%yes (s: f32[]) -> f32[] {
  %sent = u8[100]{0} collective-permute(%s), channel_id=4, source_target_pairs={{0,1},{1,0}}
}

%no (s: f32[]) -> f32[] {
  %nothing = f32[] constant(0)
}

%first_part (w: f32[4]) -> f32[8] {
  %part = f32[8]{0} all-gather(%w), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
}

%second_part (w: f32[4]) -> f32[8] {
  ROOT %part.2 = f32[8]{0} all-gather(%w), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main.5 (x: f32[4,8]) -> f32[4,8] {
  %outer = (s32[]) while(%u), condition=%condition.2, body=%body.3, backend_config={"known_trip_count":{"n":"2"}}
  %loss = (s32[], f32[4,8]) while(%v), condition=%condition.2, body=%body.2
  %start = (f32[4]{0}, f32[16]{0}) all-gather-start(%w), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
  %done = f32[16]{0} all-gather-done(%start)
  %overlapped = (f32[8]{0}, f32[8]{0}) fusion(%w), kind=kCustom, calls=%first_part
  %overlapped.2 = (f32[8]{0}, f32[8]{0}) fusion(%overlapped), kind=kCustom, calls=%second_part
  %scatter = f32[4,2]{1,0} reduce-scatter(%y), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%sum
  %mesh = f32[3]{0} reduce-scatter(%z), replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]) {'b'}, to_apply=%sum
  %choice = f32[] conditional(%k, %x, %x), branch_computations={%yes, %no}
}
"""


def test_counts_and_bytes() -> None:
    assert find_collectives(MODULE) == (
        Collectives("all-gather", 2 * 24 + 2, 2 * 24 * 16 * 8 * 2 + 16 * 4 + 8 * 4),
        Collectives("all-reduce", 2 * 24 + 1, 2 * 24 * (4 + 4) * 4 + 512 * 4),
        Collectives("reduce-scatter", 2, 8 * 4 * 4 + 3 * 4 * 4),
        Collectives("collective-permute", 1, 100),
    )


def test_no_collectives() -> None:
    assert (
        find_collectives("HloModule m\n\nENTRY %main.1 (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}\n")
        == ()
    )
