"""Django's contrib apps and Wagtail, from PyPI, through ``django``; and resets of what Wagtail itself writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fix_migrations import Blank
from fix_reset_real import real_reset

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

WRITING = """
from real_settings import *
import os
ROOT_URLCONF = "writing_urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"],
    "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"], "USER": os.environ["PGUSER"],
    "PASSWORD": os.environ["PGPASSWORD"]}}
"""

URLS = """
from django.urls import include, path
from wagtail import urls
urlpatterns = [path("", include(urls))]
"""

# What an editor does in an hour: pages are made, changed, published, moved, copied and deleted.
EDITOR = """
    import os
    os.environ["DJANGO_SETTINGS_MODULE"] = "writing_settings"
    import django
    django.setup()
    from django.contrib.auth.models import Group, Permission, User
    from django.contrib.flatpages.models import FlatPage
    from django.contrib.sessions.backends.db import SessionStore
    from django.db import transaction
    from wagtail.contrib.redirects.models import Redirect
    from wagtail.models import Collection, Page, Site

    home = Page.objects.get(depth=2)
    editor = User.objects.create_superuser("editor", "e@example.org", "pw")
    news = home.add_child(instance=Page(title="News", slug="news"))
    for number in range(5):
        child = news.add_child(instance=Page(title=f"Item {number}", slug=f"item-{number}"))
        child.save_revision(user=editor).publish()
    news.title = "Old news"
    news.save()
    news.copy(recursive=True, update_attrs={"slug": "copied", "title": "Copied"})
    archive = home.add_child(instance=Page(title="Archive", slug="archive"))
    child.move(archive, pos="last-child")
    Page.objects.get(slug="item-0", path__startswith=news.path).delete()
    home.refresh_from_db()
    home.title = "Welcome, changed"
    home.save_revision(user=editor).publish()
    Site.objects.update(hostname="example.org")
    group = Group.objects.create(name="writers")
    group.permissions.set(Permission.objects.all()[:12])
    Group.objects.get(name="Editors").delete()
    Collection.get_first_root_node().add_child(name="Pictures")
    Redirect.objects.create(old_path="/old", redirect_page=news)
    store = SessionStore()
    store["key"] = "value"
    store.save()
    try:
        with transaction.atomic():
            FlatPage.objects.create(url="/never/", title="never")
            raise KeyError
    except KeyError:
        pass
    with transaction.atomic():
        FlatPage.objects.create(url="/kept/", title="kept").sites.add(1)
        try:
            with transaction.atomic():
                User.objects.create_user("editor")
        except Exception:
            pass
    assert Page.objects.count() == 14, Page.objects.count()
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
    (tmp_path / "writing_settings.py").write_text(WRITING)
    (tmp_path / "writing_urls.py").write_text(URLS)
    with real_reset(blank, tmp_path) as lease:
        report = lease.assert_restores(
            EDITOR,
            {
                "wagtailcore_page", "wagtailcore_revision", "wagtailcore_site", "wagtailcore_collection",
                "wagtailcore_pagelogentry", "wagtailredirects_redirect", "auth_user", "auth_group",
                "auth_group_permissions", "django_session", "django_flatpage",
            },
        )  # fmt: skip
    assert report.rows > 50
