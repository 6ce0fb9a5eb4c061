"""Pages for people, under `/ui`. They call the services that `/api` calls, and own no data.

How to add a page:

1. A row for each of its routes in `ROUTES` of `gasket/access/roles.py`, for the roles that `/api` gives the same thing
   to. With a row in `PAGES` of `navigation.py`, who may see the page gets its link in `nav`.
2. A handler or controller in a module here, with the path from `/ui` on (`@get("/ui/keys")`). It takes the dependencies
   that handlers of `/api` take (`db_session`, `breakers`, ...) and returns `pages.page(request, "keys.html", ...)`.
   Add it to `HANDLERS` in `application.py`.
3. A template that extends `layout.html` and takes tables, names, times, fields and empty states from `macros.html`.
   Every stored name goes through `m.name`. `overview.py` and `overview.html` are the model.
4. A form is a POST that ends in `pages.to(...)` (303), or shows the page again with `Form.refused`. `form.html.csrf`
   is in every form: `{{ m.csrf(csrf_token) }}`.
5. A test in `tests/acceptance/test_ui_*.py` that calls `Browser.check`.

Nothing here is imported before the first page is asked for, but `door`, `assets` and `headers`.
"""
