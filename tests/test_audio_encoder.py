"""Every audio encoder gives regions, which the fusion attends to besides those of the image."""

import pytest
import torch
from tiny_models import (
    AUDIO_CONFIGS,
    FUSION_TYPES,
    audio_config,
    log_mel,
    pixels,
    randomize,
    sounds,
    tiny_model,
    tokens,
)
from transformers import ASTFeatureExtractor, AutoConfig, AutoModel, BertConfig, ClapAudioConfig, ResNetConfig

from fusion_captioner import FusionCaptionerForConditionalGeneration
from fusion_captioner.audio_encoder import AudioEncoder

WAVES = sounds(220.0, 1760.0)


def features(audio_type: str) -> torch.Tensor:
    """The two sounds as the extractor of this encoder gives them."""
    if audio_type == "audio-spectrogram-transformer":
        extractor = ASTFeatureExtractor(num_mel_bins=16, max_length=100)
        return extractor(list(WAVES.numpy()), sampling_rate=16000, return_tensors="pt")["input_values"]
    return WAVES if audio_type == "wav2vec2" else log_mel(WAVES)


def encoder(audio_type: str, num_regions: int = 5) -> AudioEncoder:
    torch.manual_seed(0)
    return AudioEncoder(AutoConfig.for_model(**audio_config(audio_type)), num_regions).eval()


@pytest.mark.parametrize("audio_type", AUDIO_CONFIGS)
def test_every_encoder_gives_the_same_number_of_regions(audio_type: str) -> None:
    audio_encoder = encoder(audio_type)
    randomize(audio_encoder)
    regions = audio_encoder(features(audio_type))
    assert regions.shape == (2, 5, 16)
    assert regions.isfinite().all()
    assert (regions[0] - regions[1]).abs().max() > 1e-3


def test_a_region_is_the_mean_of_its_stretch_of_the_encoder_alone() -> None:
    torch.manual_seed(0)
    whole = AutoModel.from_config(AutoConfig.for_model(**audio_config())).eval()
    audio_encoder = encoder("whisper")
    assert not any("decoder" in name for name, _ in audio_encoder.named_parameters())
    audio_encoder.encoder.load_state_dict(whole.get_encoder().state_dict())
    steps = whole.get_encoder()(features("whisper")).last_hidden_state  # (2, 50, 16)
    torch.testing.assert_close(audio_encoder(features("whisper")), steps.view(2, 5, 10, 16).mean(dim=2))


@pytest.mark.parametrize("config", [BertConfig(), ResNetConfig(), ClapAudioConfig()])
def test_what_is_no_audio_encoder_is_refused(config) -> None:
    with pytest.raises(ValueError, match=f"`audio_config` of type '{config.model_type}' .* WhisperConfig") as caught:
        AudioEncoder(config, 5)
    assert "\n" not in str(caught.value)


def hearing_model(**fields) -> FusionCaptionerForConditionalGeneration:
    return tiny_model(audio_config=audio_config(), num_audio_regions=4, **fields)


@pytest.mark.parametrize("fusion_type", FUSION_TYPES)
def test_sounds_are_fused_as_further_regions(fusion_type: str) -> None:
    model, ids = hearing_model(fusion_type=fusion_type), tokens()
    sound = log_mel(WAVES)
    with_sound = model(pixel_values=pixels(), input_ids=ids, input_features=sound, output_attentions=True)
    other_sound = model(pixel_values=pixels(), input_ids=ids, input_features=sound.flip(0))
    without = model(pixel_values=pixels(), input_ids=ids)
    assert (with_sound.logits - other_sound.logits).abs().max() > 1e-5
    assert (with_sound.logits - without.logits).abs().max() > 1e-5
    if with_sound.attentions is not None:
        assert with_sound.attentions[0].shape == (2, 2, 6, 16 + 4)
    encoded = model.model.get_audio_hidden_states(sound)
    cached = model(pixel_values=pixels(), input_ids=ids, audio_hidden_states=encoded)
    torch.testing.assert_close(cached.logits, with_sound.logits)


def test_generation_hears_with_and_without_cache_and_encodes_a_sound_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = hearing_model(), []
    encode = model.model.audio_encoder.forward
    monkeypatch.setattr(
        model.model.audio_encoder, "forward", lambda inputs: (calls.append(len(inputs)), encode(inputs))[1]
    )
    inputs = {"pixel_values": pixels(), "input_features": log_mel(WAVES)}
    results = [model.generate(**inputs, num_beams=3, max_new_tokens=6, use_cache=cache) for cache in (True, False)]
    assert calls == [2, 2]
    assert torch.equal(*results)


def test_a_hearing_model_is_saved_whole(tmp_path) -> None:
    model, ids = hearing_model(), tokens()
    model.save_pretrained(tmp_path)
    loaded = FusionCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.audio_config.model_type == "whisper"
    inputs = {"pixel_values": pixels(), "input_ids": ids, "input_features": log_mel(WAVES)}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("model", "sound", "message"),
    [
        (tiny_model, log_mel(WAVES), r"`input_features` \(2, 16, 100\) .* without audio encoder.*`audio_config`"),
        (hearing_model, log_mel(WAVES[:1]), "1 sounds do not fit 2 images"),
    ],
)
def test_sounds_that_do_not_fit_are_refused(model, sound: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model()(pixel_values=pixels(), input_ids=tokens(), input_features=sound)
