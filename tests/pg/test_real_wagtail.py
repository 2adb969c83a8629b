"""Django's contrib apps and Wagtail, from PyPI, through ``django``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank

pytest.importorskip("wagtail", reason="tests/requirements-real.txt is not installed")

SETTINGS = """
import os
SECRET_KEY = "x"
INSTALLED_APPS = [
    "wagtail.contrib.forms", "wagtail.contrib.redirects", "wagtail.embeds", "wagtail.sites", "wagtail.users",
    "wagtail.snippets", "wagtail.documents", "wagtail.images", "wagtail.search", "wagtail.admin", "wagtail",
    "modelcluster", "taggit",
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django.contrib.messages", "django.contrib.staticfiles", "django.contrib.sites", "django.contrib.flatpages",
    "django.contrib.redirects", "django.contrib.postgres",
]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware",
              "django.contrib.auth.middleware.AuthenticationMiddleware",
              "django.contrib.messages.middleware.MessageMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
    "context_processors": ["django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
                           "django.contrib.messages.context_processors.messages"]}}]
STATIC_URL = "/static/"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
SITE_ID = 1
WAGTAIL_SITE_NAME = "x"
WAGTAILADMIN_BASE_URL = "http://localhost"
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "production", "HOST": "db.example"}}
"""


@pytest.mark.parametrize("version", ["15", "18"])
def test_wagtail(version: str, blank_on: Callable[[str], Blank], tmp_path: Path) -> None:
    blank = blank_on(version)
    (tmp_path / "real_settings.py").write_text(SETTINGS)
    blank.migrate(tmp_path, "django:real_settings", timeout=150)
    tables = blank.tables()
    assert {
        "wagtailcore_page",
        "wagtailcore_revision",
        "wagtailimages_image",
        "auth_user",
        "django_site",
    } <= tables
    assert len(tables) > 55
    assert blank.value("SELECT count(*) FROM django_migrations") > 200
    # What Wagtail's data migrations leave: the root page, the welcome page, a site.
    assert blank.value("SELECT count(*) FROM wagtailcore_page") == 2
    assert blank.value("SELECT count(*) FROM wagtailcore_site") == 1
    assert (
        blank.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tableowner <> 'migrator'")
        == 0
    )
    assert blank.sessions() == 0
