"""Sizes by the channel that a picture is for, as the channels' own guides had them in November 2026. Pure."""

from __future__ import annotations

from typing import Literal, get_args

Preset = Literal[
    "square",
    "portrait",
    "landscape",
    "instagram_post",
    "instagram_portrait",
    "instagram_story",
    "facebook_post",
    "x_post",
    "linkedin_post",
    "pinterest_pin",
    "youtube_thumbnail",
    "tiktok_cover",
    "open_graph",
    "amazon_product",
    "shopify_product",
    "ebay_product",
    "etsy_listing",
    "google_ad_square",
    "google_ad_landscape",
    "email_header",
]

SIZES: dict[Preset, tuple[int, int]] = {
    "square": (1024, 1024),
    "portrait": (768, 1024),
    "landscape": (1024, 768),
    "instagram_post": (1080, 1080),
    "instagram_portrait": (1080, 1350),
    "instagram_story": (1080, 1920),
    "facebook_post": (1200, 630),
    "x_post": (1600, 900),
    "linkedin_post": (1200, 627),
    "pinterest_pin": (1000, 1500),
    "youtube_thumbnail": (1280, 720),
    "tiktok_cover": (1080, 1920),
    "open_graph": (1200, 630),
    "amazon_product": (2000, 2000),
    "shopify_product": (2048, 2048),
    "ebay_product": (1600, 1600),
    "etsy_listing": (2000, 1500),
    "google_ad_square": (1200, 1200),
    "google_ad_landscape": (1200, 628),
    "email_header": (1200, 400),
}
"""Width and height in pixels."""

PRESETS: tuple[Preset, ...] = get_args(Preset)
